"""Every attention kernel against the plain one, on every kind of row; what a kernel cannot serve."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refvlm_jax.config.errors import ConfigError
from refvlm_jax.config.resolve import resolve
from refvlm_jax.mesh.build import make_mesh, make_rules
from refvlm_jax.mesh.rules import use_sharding
from refvlm_jax.nn.attention import attention, causal_attention, causal_segment_mask
from refvlm_jax.nn.fused_attention import cudnn_attention, splash_attention
from refvlm_jax.plan.flops import count_flops

ROWS, LENGTH, HEADS, WIDTH = 2, 256, 4, 16


def one_segment(rng: np.random.Generator) -> np.ndarray:
    return np.ones((ROWS, LENGTH), np.int32)


def padded(rng: np.random.Generator) -> np.ndarray:
    return (np.arange(LENGTH) < rng.integers(3, LENGTH, (ROWS, 1))).astype(np.int32)


def packed(rng: np.random.Generator) -> np.ndarray:
    """Several dialogues in a row, each with its pictures, and padding behind them."""
    cuts = np.sort(rng.integers(1, LENGTH - 20, (ROWS, 4)), axis=1)
    found = 1 + (np.arange(LENGTH)[None, :, None] >= cuts[:, None, :3]).sum(-1)
    return np.where(np.arange(LENGTH) < cuts[:, 3:] + 20, found, 0).astype(np.int32)


def heads(seed: int, count: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (ROWS, LENGTH, count, WIDTH))


@pytest.mark.parametrize(
    ("rows", "groups", "window"),
    [
        (one_segment, HEADS, None),
        (padded, 2, None),
        (packed, 1, None),
        (packed, HEADS, 40),
        (padded, 2, 40),
    ],
)
def test_kernels_equal_the_plain_products(rows, groups: int, window: int | None) -> None:
    """Results at all positions and gradients of what a loss sees, forward and backward."""
    segments = jnp.asarray(rows(np.random.default_rng(3)))
    q, k, v = heads(0, HEADS), heads(1, groups), heads(2, groups)
    mask = causal_segment_mask(segments, sliding_window=window)
    weight = jax.random.normal(jax.random.key(4), q.shape) * (segments > 0)[..., None, None]

    def both(run):
        def loss(q, k, v):
            out = run(q, k, v)
            return (out * weight).sum(), out

        run_both = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
        (_, out), gradient = run_both(q, k, v)
        return (out, *gradient)

    kernels = {
        "blocks": lambda q, k, v: causal_attention(q, k, v, mask, block=64),
        "cudnn": lambda q, k, v: cudnn_attention(q, k, v, mask, implementation="xla"),
        "splash": lambda q, k, v: splash_attention(
            q, k, v, segments, sliding_window=window, interpret=True
        ),
    }
    want = both(lambda q, k, v: attention(q, k, v, mask))
    for name, run in kernels.items():
        for found, value in zip(both(run), want, strict=True):
            np.testing.assert_allclose(found, value, atol=2e-5, err_msg=name)


@pytest.mark.multidevice
def test_devices_run_the_kernel_on_their_rows_and_heads() -> None:
    config = resolve({"name": "m", "mesh": {"preset": "fsdp_tp", "shape": (1, 2, 1, 4)}})
    mesh, rules = make_mesh(config.mesh, jax.devices()[:8]), make_rules(config.mesh)
    segments = jnp.asarray(packed(np.random.default_rng(5)))
    q, k, v = heads(0, HEADS), heads(1, HEADS), heads(2, HEADS)

    @jax.jit
    def run(q, k, v):
        with use_sharding(mesh, rules):
            return splash_attention(q, k, v, segments, interpret=True)

    want = attention(q, k, v, causal_segment_mask(segments))
    np.testing.assert_allclose(run(q, k, v), want, atol=2e-5)


def test_flops_of_the_kernel_are_those_of_its_products() -> None:
    """Half of all pairs; the backward pass makes them 3.5 times, of which 2 are no repetition."""
    segments = jnp.ones((ROWS, LENGTH), jnp.int32)
    heads_of = [jax.ShapeDtypeStruct((ROWS, LENGTH, n, WIDTH), jnp.float32) for n in (4, 2, 2)]

    def loss(q, k, v):
        return splash_attention(q, k, v, segments).sum()

    product = 2 * ROWS * HEADS * WIDTH * LENGTH**2 / 2
    forward = count_flops(jax.make_jaxpr(loss)(*heads_of).jaxpr)
    assert forward.total == forward.model == 2 * product
    both = count_flops(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(*heads_of).jaxpr)
    # And one sum over each row of the result.
    assert (both.total, both.model) == pytest.approx((9 * product, 6 * product), rel=2e-3)


@pytest.mark.parametrize(
    ("kernel", "sections", "message"),
    [
        ("cudnn", {}, "no float32; set train.compute_dtype"),
        ("splash", {"data": {"seq_len": 200}}, "200 of data.seq_len .* use 256"),
        ("splash", {"data": {"shared_picture": True}}, "side by side"),
        ("splash", {"mesh": {"preset": "fsdp_seq", "shape": (1, 2, 4, 1)}}, "whole rows"),
        ("splash", {"mesh": {"preset": "fsdp_tp", "shape": (1, 2, 1, 3)}}, "divide over"),
        ("cudnn", {"model": {"llama": {"attention_block": 128}}}, "attention_block = 0"),
    ],
)
def test_what_a_kernel_cannot_serve_is_refused(kernel: str, sections: dict, message: str) -> None:
    tree = {"name": "kernels", "data": {"seq_len": 256}, **sections}
    llama = tree.get("model", {}).get("llama", {})
    with pytest.raises(ConfigError, match=message):
        resolve({**tree, "model": {"llama": {**llama, "attention": kernel}}})
    fine = resolve({"name": "kernels", "train": {"compute_dtype": "bfloat16"}})
    assert replace(fine.model.llama, attention=kernel).attention == kernel
