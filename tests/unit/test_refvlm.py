"""The composed model: placement, independence of rows, losses and their counts."""

import dataclasses
import functools
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from refvlm_jax.batch import NO_SLOT, Batch
from refvlm_jax.models.objective import language_loss_sum, loss_counts, loss_sums, loss_weights
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


@functools.cache
def sums_program(model: RefVLM) -> Callable[[nnx.State, Batch], dict]:
    """Compiled once a model and batch size."""
    graph, _ = nnx.split(model)
    return jax.jit(lambda s, b: loss_sums(nnx.merge(graph, s), b, None))


def sums_of(model: RefVLM, batch: Batch) -> dict:
    return sums_program(model)(nnx.state(model), batch)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return random_batch(tiny_spec(tiny_config(), 56), rows=6, seed=3)


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
    np.testing.assert_allclose(
        alone_units.keypoints.points[0], units.keypoints.points[1], atol=1e-5
    )
    np.testing.assert_allclose(alone_units.depth[0], units.depth[1], rtol=1e-4)


def test_losses_add_up_over_any_split_of_the_batch(model: RefVLM, batch: Batch) -> None:
    whole, counts = sums_of(model, batch), loss_counts(model.config, batch)
    halves = [jax.tree.map(lambda x, s=s: x[s], batch) for s in (slice(0, 3), slice(3, 6))]
    half_sums = [sums_of(model, half) for half in halves]
    for name in whole:
        parts = sum(float(sums[name]) for sums in half_sums)
        np.testing.assert_allclose(parts, whole[name], rtol=1e-4)
        part_counts = sum(float(loss_counts(model.config, half)[name]) for half in halves)
        assert part_counts == counts[name]


@pytest.mark.parametrize("chunk", [7, 20])
def test_logits_in_chunks_change_neither_loss_nor_gradient(
    model: RefVLM, batch: Batch, chunk: int
) -> None:
    graph, state = nnx.split(model)
    hidden = jax.random.normal(jax.random.key(0), (*batch.tokens.shape, 32))

    def loss(state: nnx.State, hidden: jax.Array, chunk: int) -> jax.Array:
        own = nnx.merge(graph, state)
        llama = dataclasses.replace(own.config.llama, logits_chunk=chunk)
        own.config = dataclasses.replace(own.config, llama=llama)
        return language_loss_sum(own, hidden, batch)

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), static_argnums=2)
    (want, grads), (found, chunked) = both(state, hidden, 0), both(state, hidden, chunk)
    np.testing.assert_allclose(found, want, rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), chunked, grads)


def test_counts_are_the_references_of_each_unit(model: RefVLM, batch: Batch) -> None:
    counts = loss_counts(model.config, batch)
    units = np.where(batch.ref_valid, batch.ref_unit, 0)
    assert counts["box_l1"] == (units == Unit.BOX).sum()
    assert counts["mask_dice"] == (units == Unit.MASK).sum()
    assert counts["keypoint_l1"] == (units == Unit.KEYPOINT).sum() > 0
    assert counts["depth_silog"] == (units == Unit.DEPTH).sum() > 0
    assert counts["depth_affine"] == 0
    assert set(loss_weights(model.config)) == set(counts)


@pytest.mark.parametrize("slot", ["keypoint_slot", "depth_slot", "mask_slot"])
def test_a_reference_without_a_target_slot_counts_nowhere(
    model: RefVLM, batch: Batch, slot: str
) -> None:
    without = dataclasses.replace(batch, **{slot: np.full_like(getattr(batch, slot), NO_SLOT)})
    prefix = slot.partition("_")[0] + "_"
    before, counts = loss_counts(model.config, batch), loss_counts(model.config, without)
    sums = sums_of(model, without)
    for name in counts:
        lost = name.startswith(prefix)
        assert counts[name] == (0 if lost else before[name]), name
        assert not lost or sums[name] == 0, name


def test_keypoints_are_compared_with_their_own_target(model: RefVLM, batch: Batch) -> None:
    """Targets may lie in any slot, as long as the slot map says so."""
    swapped = dataclasses.replace(
        batch,
        keypoints=batch.keypoints[:, ::-1],
        keypoint_slot=np.where(batch.keypoint_slot == NO_SLOT, NO_SLOT, 1 - batch.keypoint_slot),
    )
    before, after = sums_of(model, batch), sums_of(model, swapped)
    np.testing.assert_allclose(after["keypoint_l1"], before["keypoint_l1"], rtol=1e-6)
    moved = dataclasses.replace(batch, keypoints=batch.keypoints[:, ::-1])
    assert abs(sums_of(model, moved)["keypoint_l1"] - before["keypoint_l1"]) > 1e-3


def test_unknown_depth_adds_nothing(model: RefVLM, batch: Batch) -> None:
    blank = dataclasses.replace(batch, depth=np.zeros_like(batch.depth))
    sums, counts = sums_of(model, blank), loss_counts(model.config, blank)
    for name in ("depth_silog", "depth_gradient", "depth_affine"):
        assert sums[name] == 0 and counts[name] == 0
    relative = dataclasses.replace(batch, depth_relative=np.ones_like(batch.depth_relative))
    counts = loss_counts(model.config, relative)
    assert counts["depth_silog"] == 0 and counts["depth_affine"] > 0


def test_a_model_without_the_units_needs_no_slots(batch: Batch) -> None:
    config = dataclasses.replace(tiny_config(), keypoint=None, depth=None)
    spec = tiny_spec(config)
    assert spec.kpt_refs == spec.depth_refs == 0
    plain = random_batch(spec, rows=2, seed=3)
    assert plain.keypoints.size == plain.depth.size == 0
    sums = sums_of(RefVLM(config, nnx.Rngs(0)), plain)
    assert set(sums) == set(loss_weights(config)) == set(loss_counts(config, plain))
    assert not any(name.startswith(("keypoint", "depth")) for name in sums)


def test_a_keypoint_unit_refuses_batches_without_its_slots(model: RefVLM, batch: Batch) -> None:
    bare = dataclasses.replace(batch, keypoints=batch.keypoints[:, :0])
    with pytest.raises(ValueError, match=r"set data\.kpt_refs"):
        loss_counts(model.config, bare)


def test_no_references_give_zero_loss_and_finite_gradients(model: RefVLM, batch: Batch) -> None:
    empty = dataclasses.replace(batch, ref_valid=np.zeros_like(batch.ref_valid))
    graph, state = nnx.split(model)

    def units_loss(state: nnx.State) -> jax.Array:
        sums = loss_sums(nnx.merge(graph, state), empty, None)
        return sum(value for name, value in sums.items() if name != "llm")

    value, grads = jax.jit(jax.value_and_grad(units_loss))(state)
    assert value == 0.0
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.slow(1)
def test_every_part_of_the_model_receives_a_gradient(model: RefVLM, batch: Batch) -> None:
    graph, state = nnx.split(model)

    def total(state: nnx.State) -> jax.Array:
        sums = loss_sums(nnx.merge(graph, state), batch, None)
        return sum(sums.values())

    grads = jax.jit(jax.grad(total))(state)
    parts = ("vision", "region_prompts", "projector", "llama", "box", "mask", "keypoint", "depth")
    for part in parts:
        assert any(np.abs(g).max() > 0 for g in jax.tree.leaves(grads[part])), part
