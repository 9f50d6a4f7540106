"""The composed model: placement, independence of rows, losses and their counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from refvlm_jax.batch import Batch
from refvlm_jax.models.objective import loss_counts, loss_sums, loss_weights
from refvlm_jax.models.placement import pixel_mask, place
from refvlm_jax.models.refvlm import RefVLM
from refvlm_jax.testing.tiny import random_batch, tiny_config, tiny_spec
from refvlm_jax.trp.tokens import Unit


@pytest.fixture(scope="module")
def model() -> RefVLM:
    return RefVLM(tiny_config(), nnx.Rngs(0))


def forward(model: RefVLM, batch: Batch) -> tuple:
    graph, state = nnx.split(model)
    return jax.jit(lambda s, b: nnx.merge(graph, s)(b))(state, batch)


def sums_of(model: RefVLM, batch: Batch) -> dict:
    graph, state = nnx.split(model)
    return jax.jit(lambda s, b: loss_sums(nnx.merge(graph, s), b, None))(state, batch)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return random_batch(tiny_spec(tiny_config()), rows=4, seed=3)


def test_place_takes_text_and_visual_tokens() -> None:
    text, visual = np.arange(8.0).reshape(1, 4, 2), 100 + np.arange(6.0).reshape(1, 3, 2)
    placed = place(jnp.asarray(text), jnp.asarray(visual), jnp.array([[-1, 2, 0, -1]]))
    np.testing.assert_array_equal(placed[0], [text[0, 0], visual[0, 2], visual[0, 0], text[0, 3]])


def test_pixel_mask_covers_the_picture_only() -> None:
    mask = np.asarray(pixel_mask(jnp.array([0, 8, 32, 24]), 16, 32))
    assert mask[4:12].all() and mask.sum() == 8 * 16


def test_a_row_is_independent_of_its_neighbours(model: RefVLM, batch: Batch) -> None:
    hidden, units = forward(model, batch)
    alone, alone_units = forward(model, jax.tree.map(lambda x: x[1:2], batch))
    np.testing.assert_allclose(alone[0], hidden[1], atol=1e-5)
    np.testing.assert_allclose(alone_units.boxes[0], units.boxes[1], atol=1e-5)


def test_losses_add_up_over_any_split_of_the_batch(model: RefVLM, batch: Batch) -> None:
    whole, counts = sums_of(model, batch), loss_counts(model.config, batch)
    halves = [jax.tree.map(lambda x, s=s: x[s], batch) for s in (slice(0, 2), slice(2, 4))]
    half_sums = [sums_of(model, half) for half in halves]
    for name in whole:
        parts = sum(float(sums[name]) for sums in half_sums)
        np.testing.assert_allclose(parts, whole[name], rtol=1e-4)
        part_counts = sum(float(loss_counts(model.config, half)[name]) for half in halves)
        assert part_counts == counts[name]


def test_counts_are_the_references_of_each_unit(model: RefVLM, batch: Batch) -> None:
    counts = loss_counts(model.config, batch)
    units = np.where(batch.ref_valid, batch.ref_unit, 0)
    assert counts["box_l1"] == (units == Unit.BOX).sum()
    assert counts["mask_dice"] == (units == Unit.MASK).sum()
    assert set(loss_weights(model.config)) == set(counts)


def test_no_references_give_zero_loss_and_finite_gradients(model: RefVLM, batch: Batch) -> None:
    empty = dataclasses.replace(batch, ref_valid=np.zeros_like(batch.ref_valid))
    graph, state = nnx.split(model)

    def units_loss(state: nnx.State) -> jax.Array:
        sums = loss_sums(nnx.merge(graph, state), empty, None)
        return sum(value for name, value in sums.items() if name != "llm")

    value, grads = jax.jit(jax.value_and_grad(units_loss))(state)
    assert value == 0.0
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_every_part_of_the_model_receives_a_gradient(model: RefVLM, batch: Batch) -> None:
    graph, state = nnx.split(model)

    def total(state: nnx.State) -> jax.Array:
        sums = loss_sums(nnx.merge(graph, state), batch, None)
        return sum(sums.values())

    grads = jax.jit(jax.grad(total))(state)
    for part in ("vision", "region_prompts", "projector", "llama", "box", "mask"):
        assert any(np.abs(g).max() > 0 for g in jax.tree.leaves(grads[part])), part


def test_kernel_gain_scales_what_the_language_model_sees(model: RefVLM) -> None:
    config = dataclasses.replace(tiny_config(), kernel_gain=2.0)
    scaled = nnx.to_flat_state(nnx.state(RefVLM(config, nnx.Rngs(0)), nnx.Param))
    plain = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    for path, variable in scaled:
        seen = path[0] in ("vision", "region_prompts", "projector")
        factor = 2.0 if path[-1] == "kernel" and seen else 1.0
        np.testing.assert_allclose(variable[...], factor * plain[path][...])
