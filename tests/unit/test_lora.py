"""LoRA: no change at birth, only on the chosen projections, and folding keeps the function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from refvlm_jax.config.model import LlamaConfig, LoraConfig
from refvlm_jax.models.llama import Llama
from refvlm_jax.nn.projection import Projection, merge_lora
from refvlm_jax.train.model_def import define

LORA = LoraConfig(rank=2, alpha=6.0, targets=("q", "o", "down"))
CONFIG = LlamaConfig(
    vocab_size=11, width=8, layers=2, heads=4, kv_heads=2, head_dim=4, mlp_dim=12, lora=LORA
)
TOKENS = jnp.array([[1, 2, 3, 4, 5]])


def logits(model: Llama) -> jax.Array:
    places = jnp.arange(TOKENS.shape[1])[None]
    hidden = model(model.embed(TOKENS), places, jnp.ones_like(TOKENS)).hidden
    return model.logits(hidden)


@pytest.fixture(scope="module")
def trained() -> Llama:
    """A model whose adapters have moved away from zero."""
    model = Llama(CONFIG, nnx.Rngs(0))
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        if path[-1] == "lora_b":
            noise = np.random.default_rng(len(path)).normal(size=variable[...].shape)
            variable[...] = jnp.asarray(noise, jnp.float32)
    return model


@pytest.mark.parametrize(("inner", "outer"), [((8,), (2, 3)), ((2, 4), (5,)), ((8,), (6,))])
def test_a_fresh_adapter_changes_no_bit(inner: tuple[int, ...], outer: tuple[int, ...]) -> None:
    axes = (None,) * (len(inner) + len(outer))
    plain = Projection(inner, outer, axes, nnx.Rngs(3))
    adapted = Projection(inner, outer, axes, nnx.Rngs(3), lora=LORA)
    x = np.random.default_rng(0).normal(size=(2, 5, *inner)).astype(np.float32)
    np.testing.assert_array_equal(adapted(x), plain(x))
    want = x.reshape(2, 5, -1) @ np.asarray(plain.kernel[...]).reshape(np.prod(inner), -1)
    np.testing.assert_allclose(plain(x), want.reshape(2, 5, *outer), atol=1e-5)


def test_only_the_targets_carry_adapters_with_their_axes() -> None:
    axes = {n: a for n, a in define(lambda r: Llama(CONFIG, r)).axes.items() if "lora" in n}
    assert axes == {
        "blocks.block.attn.q.lora.lora_a": ("layers", "embed", "rank"),
        "blocks.block.attn.q.lora.lora_b": ("layers", "outer_rank", "heads"),
        "blocks.block.attn.o.lora.lora_a": ("layers", "heads", "outer_rank"),
        "blocks.block.attn.o.lora.lora_b": ("layers", "rank", "embed"),
        "blocks.block.mlp.down.lora.lora_a": ("layers", "mlp", "outer_rank"),
        "blocks.block.mlp.down.lora.lora_b": ("layers", "rank", "embed"),
    }


def test_the_correction_is_alpha_over_rank_times_a_b(trained: Llama) -> None:
    lora = trained.blocks.block.mlp.down.lora
    a, b = np.asarray(lora.lora_a[...]), np.asarray(lora.lora_b[...])
    np.testing.assert_allclose(lora.delta(), 3.0 * a @ b, rtol=1e-5, atol=1e-6)


def test_folding_keeps_the_function_and_drops_the_adapters(trained: Llama) -> None:
    before = np.asarray(logits(trained))
    merged = merge_lora(trained)
    np.testing.assert_allclose(logits(merged), before, atol=1e-4 * np.abs(before).max())
    names = {path[-1] for path, _ in nnx.to_flat_state(nnx.state(merged))}
    assert names == {"embedding", "kernel", "scale", "lm_head"}
    # The original is left alone, and the adapters did matter.
    np.testing.assert_array_equal(logits(trained), before)
    assert np.abs(before - logits(Llama(CONFIG, nnx.Rngs(0)))).max() > 0.1


def test_training_starts_with_b_alone() -> None:
    graph, state = nnx.split(Llama(CONFIG, nnx.Rngs(0)))
    grads = jax.jit(jax.grad(lambda s: jnp.square(logits(nnx.merge(graph, s))).sum()))(state)
    for path, grad in nnx.to_flat_state(grads):
        if "lora" in path[-1]:
            assert (np.abs(grad[...]).max() > 0) == (path[-1] == "lora_b"), path
