"""Attention against its definition, the masks of packed rows, rotary positions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refvlm_jax.nn.attention import attention, causal_attention, causal_segment_mask
from refvlm_jax.nn.rotary import rotate, rotation
from refvlm_jax.plan.flops import count_flops


def qkv(heads: int, groups: int, scale: float = 1.0) -> list[np.ndarray]:
    rng = np.random.default_rng([heads, groups])
    shapes = [(2, 5, heads, 8), (2, 7, groups, 8), (2, 7, groups, 8)]
    return [(scale * rng.normal(size=shape)).astype(np.float32) for shape in shapes]


def by_definition(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """One head at a time, key head h // (H / G) for query head h, in float64."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    share = q.shape[2] // k.shape[2]
    for h in range(q.shape[2]):
        scores = q[:, :, h] @ k[:, :, h // share].transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        scores = np.where(mask[:, 0], scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, :, h] = weights / weights.sum(-1, keepdims=True) @ v[:, :, h // share]
    return out


@pytest.mark.parametrize("groups", [4, 2, 1])
def test_attention_is_its_definition(groups: int) -> None:
    q, k, v = qkv(4, groups)
    mask = np.random.default_rng(0).random((2, 1, 5, 7)) < 0.6
    mask[..., 0] = True
    np.testing.assert_allclose(attention(q, k, v, mask), by_definition(q, k, v, mask), atol=1e-5)
    everything = np.ones_like(mask)
    np.testing.assert_allclose(attention(q, k, v), by_definition(q, k, v, everything), atol=1e-5)


def test_scale_replaces_the_default() -> None:
    q, k, v = qkv(2, 2)
    np.testing.assert_allclose(
        attention(q, k, v, scale=0.5), attention(q * (0.5 * 8**0.5), k, v), atol=1e-6
    )


def test_an_empty_mask_row_is_finite_in_value_and_gradient() -> None:
    q, k, v = qkv(2, 2)
    mask = np.ones((2, 1, 5, 7), bool)
    mask[0, 0, 3] = False
    both = jax.jit(jax.value_and_grad(lambda *x: attention(*x, mask).sum(), (0, 1, 2)))
    value, grads = both(q, k, v)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in grads)


def test_scores_of_bf16_inputs_are_not_rounded() -> None:
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in qkv(2, 2, scale=6.0))
    found = attention(q, k, v)
    assert found.dtype == jnp.bfloat16
    exact = attention(*(x.astype(jnp.float32) for x in (q, k, v)))
    # Scores reach hundreds: rounded to bf16 they would be off by whole units.
    bound = 0.02 * np.abs(v.astype(jnp.float32)).max()
    assert np.abs(found.astype(jnp.float32) - exact).max() < bound


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=8),
    st.one_of(st.none(), st.integers(1, 4)),
)
def test_causal_segment_mask_is_its_definition(segments: list[int], window: int | None) -> None:
    found = np.asarray(causal_segment_mask(jnp.array([segments]), sliding_window=window))[0, 0]
    for s, own in enumerate(segments):
        for t, other in enumerate(segments):
            near = t <= s and (window is None or s - t < window)
            assert found[s, t] == (near and own == other)


def test_rotary_turns_channel_i_with_channel_i_plus_half() -> None:
    x = np.random.default_rng(0).normal(size=(1, 3, 1, 4)).astype(np.float32)
    turned = np.asarray(rotate(x, rotation(jnp.array([[0, 1, 7]]), 4, theta=100.0)))[0, :, 0]
    angles = np.array([[0, 0], [1, 0.1], [7, 0.7]])
    # As complex numbers: channel i is the real part, channel i + K/2 the imaginary one.
    want = (x[0, :, 0, :2] + 1j * x[0, :, 0, 2:]) * np.exp(1j * angles)
    np.testing.assert_allclose(turned, np.concatenate([want.real, want.imag], -1), atol=1e-6)


def test_rotary_scores_depend_on_distance_only() -> None:
    q, k = (np.random.default_rng(s).normal(size=(1, 1, 1, 8)).astype(np.float32) for s in (1, 2))

    def score(at: int, to: int) -> float:
        turn = lambda x, p: rotate(x, rotation(jnp.array([[p]]), 8, 1e4))  # noqa: E731
        return float((turn(q, at) * turn(k, to)).sum())

    np.testing.assert_allclose(score(9, 4), score(105, 100), atol=1e-4)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3


LENGTH = 10


def packed() -> list[jax.Array]:
    """Queries of four heads, keys and values of two, and the mask of packed, windowed rows."""
    keys = jax.random.split(jax.random.key(1), 3)
    heads = [jax.random.normal(k, (2, LENGTH, n, 8)) for k, n in zip(keys, (4, 2, 2), strict=True)]
    segments = jnp.array([[1] * 4 + [2] * 6, [1] * 7 + [0] * 3])
    return [*heads, causal_segment_mask(segments, sliding_window=5)]


def total(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, block: int) -> jax.Array:
    return jnp.sin(causal_attention(q, k, v, mask, block=block).astype(jnp.float32)).sum()


@pytest.mark.parametrize("block", [3, 4, 16])
def test_blocks_of_queries_change_nothing_but_rounding(block: int) -> None:
    both = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)), static_argnums=4)
    whole, parts = both(*packed(), 0), both(*packed(), block)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=2e-5), whole, parts)


def test_blocks_of_bf16_are_as_good_as_the_whole() -> None:
    *heads, mask = packed()
    halves = [x.astype(jnp.bfloat16) for x in heads]
    exact = jax.grad(total, (0, 1, 2))(*(x.astype(jnp.float32) for x in halves), mask, 0)
    for block in (0, 4):
        found = jax.grad(total, (0, 1, 2))(*halves, mask, block)
        for gradient, want in zip(found, exact, strict=True):
            assert gradient.dtype == jnp.bfloat16
            error = np.abs(gradient.astype(jnp.float32) - want).max()
            assert error < 0.02 * np.abs(want).max(), block


def test_blocks_keep_no_scores() -> None:
    *heads, mask = packed()
    _, backward = jax.vjp(lambda q, k, v: causal_attention(q, k, v, mask, block=5), *heads)
    kept = [x for x in jax.tree.leaves(backward) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert kept and not {x.shape[-2:] for x in kept} & {(5, 5), (5, LENGTH)}


def test_products_of_the_backward_pass_are_counted_once() -> None:
    """Scores are made again, which is no work of the model: 7 products in all, 6 without them."""
    *heads, mask = packed()
    q = heads[0]
    pairs = 5 * 5 + 5 * LENGTH
    product = 2 * q.shape[0] * q.shape[2] * pairs * q.shape[3]

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return causal_attention(q, k, v, mask, block=5).sum()

    found = count_flops(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(*heads).jaxpr)
    assert (found.total, found.model) == (7 * product, 6 * product)
