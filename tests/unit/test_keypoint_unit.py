"""Keypoint unit: shapes, slots, gradients; its losses on cases worked by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from refvlm_jax.config.model import COCO_SIGMAS, BoxUnitConfig, KeypointUnitConfig
from refvlm_jax.models.units.keypoint import KeypointOutputs, KeypointUnit, visible_points
from refvlm_jax.models.units.keypoint_losses import (
    keypoint_loss_counts,
    keypoint_loss_sums,
    keypoint_loss_weights,
    object_similarity,
)

TINY = dict(features=(0, 1), width=16, layers=2, heads=2, mlp_dim=16)
CONFIG = KeypointUnitConfig(
    box=BoxUnitConfig(num_queries=3, **TINY), sigmas=(0.05, 0.1, 0.1, 0.2), **TINY
)
MEAN = dataclasses.replace(CONFIG, distance_loss="mean")
DIMS = (6, 10)


@pytest.fixture(scope="module")
def unit() -> KeypointUnit:
    return KeypointUnit(CONFIG, DIMS, 12, nnx.Rngs(0))


@pytest.fixture(scope="module")
def inputs() -> tuple:
    rng = np.random.default_rng(0)
    maps = [
        rng.normal(size=(2, n, n, c)).astype(np.float32) for n, c in zip((4, 3), DIMS, strict=True)
    ]
    valid = np.array([[True, True, False], [True, False, False]])
    queries = rng.normal(size=(2, 3, 12)).astype(np.float32) * valid[..., None]
    return jnp.asarray(queries), jnp.asarray(valid), [jnp.asarray(m) for m in maps]


def run(config: KeypointUnitConfig, unit: KeypointUnit, *inputs, key=None) -> KeypointOutputs:
    """The unit's parameters under another configuration."""
    graph = nnx.split(KeypointUnit(config, DIMS, 12, nnx.Rngs(1)))[0]
    return jax.jit(lambda s, i, k: nnx.merge(graph, s)(*i, k))(nnx.split(unit)[1], inputs, key)


def test_shapes_and_ranges(unit: KeypointUnit, inputs: tuple) -> None:
    out = run(CONFIG, unit, *inputs)
    assert out.points.shape == (2, 3, 4, 2) and out.visibility.shape == (2, 3, 4, 2)
    assert out.boxes.shape == out.first_boxes.shape == (2, 3, 4)
    for value in (out.points, out.boxes, out.first_boxes):
        assert value.dtype == jnp.float32 and (value > 0).all() and (value < 1).all()


def test_first_boxes_are_those_of_the_box_decoder(unit: KeypointUnit, inputs: tuple) -> None:
    out = run(CONFIG, unit, *inputs)
    np.testing.assert_allclose(out.first_boxes, unit.box(*inputs), atol=1e-6)


def test_points_of_a_slot_differ_from_one_another(unit: KeypointUnit, inputs: tuple) -> None:
    points = np.asarray(run(CONFIG, unit, *inputs).points)
    assert (np.ptp(points, axis=2) > 1e-3).all()


def test_empty_slots_take_part_as_released_unless_masked(unit: KeypointUnit, inputs: tuple) -> None:
    queries, valid, maps = inputs
    noise = jnp.where(valid[..., None], queries, 7.0)
    masked = dataclasses.replace(
        CONFIG,
        box=dataclasses.replace(CONFIG.box, mask_padding_queries=True),
        mask_padding_queries=True,
    )
    keep = np.asarray(valid)
    for config, equal in ((CONFIG, False), (masked, True)):
        clean, noisy = (run(config, unit, q, valid, maps).points[keep] for q in (queries, noise))
        assert np.allclose(clean, noisy, atol=1e-6) == equal


def test_dropout_needs_a_key(unit: KeypointUnit, inputs: tuple) -> None:
    plain = run(CONFIG, unit, *inputs).points
    dropped = run(CONFIG, unit, *inputs, key=jax.random.key(0)).points
    assert not np.allclose(plain, dropped, atol=1e-4)


def test_recomputation_changes_no_gradient(unit: KeypointUnit, inputs: tuple) -> None:
    _, state = nnx.split(unit)

    def grads(remat: str):
        config = dataclasses.replace(CONFIG, remat=remat)
        graph, _ = nnx.split(KeypointUnit(config, DIMS, 12, nnx.Rngs(1)))
        return jax.jit(jax.grad(lambda s: nnx.merge(graph, s)(*inputs).points.sum()))(state)

    for a, b in zip(*(jax.tree.leaves(grads(r)) for r in ("none", "full")), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_visible_points_carry_a_probability() -> None:
    logits = jnp.array([[0.0, 0.0], [0.0, np.log(3.0)], [2.0, -2.0]])[None, None]
    points = jnp.full((1, 1, 3, 2), 0.25)
    zero = jnp.zeros((1, 1, 4))
    out = visible_points(
        KeypointOutputs(points=points, visibility=logits, boxes=zero, first_boxes=zero)
    )
    want = [0.5, 0.75, 1 / (1 + np.exp(4))]
    np.testing.assert_allclose(out[0, 0, :, 2], want, rtol=1e-6)
    np.testing.assert_array_equal(out[..., :2], points)


# Losses


SUMS = jax.jit(keypoint_loss_sums, static_argnames="config")


def outputs(points, boxes, logits=None) -> KeypointOutputs:
    points, boxes = np.asarray(points, np.float32), np.asarray(boxes, np.float32)
    logits = np.zeros(points.shape, np.float32) if logits is None else logits
    arrays = dict(points=points, visibility=logits, boxes=boxes, first_boxes=boxes)
    return KeypointOutputs(**{k: jnp.asarray(v) for k, v in arrays.items()})


def sums_of(pred, boxes, keypoints, group, valid, config=CONFIG) -> dict[str, float]:
    arrays = [jnp.asarray(a) for a in (boxes, keypoints, group, valid)]
    return {k: float(v) for k, v in SUMS(pred, *arrays, config=config).items()}


def person(rng, count: int) -> tuple[np.ndarray, np.ndarray]:
    boxes = rng.uniform(0.3, 0.6, (1, count, 4)).astype(np.float32)
    keypoints = rng.uniform(0.1, 0.9, (1, count, 4, 3)).astype(np.float32)
    keypoints[..., 2] = rng.integers(0, 3, (1, count, 4))
    return boxes, keypoints


def test_values_by_hand() -> None:
    boxes = np.array([[[0.5, 0.5, 0.4, 0.5]]])
    keypoints = np.array([[[[0.5, 0.5, 2], [0.2, 0.2, 1], [0.0, 0.0, 0], [0.6, 0.6, 2]]]])
    points = np.array([[[[0.5, 0.6], [0.2, 0.2], [0.3, 0.4], [0.63, 0.64]]]])
    one = np.ones((1, 1), bool)
    sums = sums_of(outputs(points, boxes), boxes, keypoints, one.astype(int), one)
    assert sums["keypoint_box_l1"] == sums["keypoint_first_l1"] == pytest.approx(0, abs=1e-6)
    assert sums["keypoint_l1"] == pytest.approx(0.1 + 0.07, rel=1e-5)
    # Undecided logits: focal loss of one class right and one wrong, halved, for four points.
    assert sums["keypoint_visibility"] == pytest.approx(4 * 0.25 * np.log(2) / 2, rel=1e-5)
    area = 0.2
    near = [np.exp(-0.01 / (2 * area * 0.1**2)), 1.0, np.exp(-0.0025 / (2 * area * 0.4**2))]
    assert sums["keypoint_distance"] == pytest.approx(1 - np.mean(near), rel=1e-5)
    sums = sums_of(outputs(points, boxes), boxes, keypoints, one.astype(int), one, MEAN)
    # As released, the unlabelled point in the corner counts: 0.5 away.
    assert sums["keypoint_distance"] == pytest.approx((0.1 + 0.0 + 0.5 + 0.05) / 4, rel=1e-4)


def test_similarity_of_the_reference_case() -> None:
    keypoints, points = np.zeros((17, 3)), np.zeros((17, 2))
    keypoints[[0, 5, 11], 2] = 2
    points[0, 0], points[5, 1], points[3] = 5.0, 20.0, 900.0
    found = object_similarity(points, keypoints, np.float32(10_000), COCO_SIGMAS)
    assert float(found) == pytest.approx(0.6928860135, rel=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.permutations(range(3)))
def test_order_of_targets_within_a_group_does_not_count(seed: int, order: list[int]) -> None:
    rng = np.random.default_rng(seed)
    (boxes, keypoints), (found, points) = person(rng, 3), person(rng, 3)
    pred, zero, ones = outputs(points[..., :2], found), np.zeros((1, 3), int), np.ones((1, 3), bool)
    plain = sums_of(pred, boxes, keypoints, zero, ones)
    shuffled = sums_of(pred, boxes[:, order], keypoints[:, order], zero, ones)
    assert plain == pytest.approx(shuffled, rel=1e-4, abs=1e-5)


def test_keypoints_go_with_their_box() -> None:
    boxes, keypoints = person(np.random.default_rng(3), 2)
    keypoints[..., 2] = 2
    swapped = outputs(keypoints[:, ::-1, :, :2], boxes[:, ::-1])
    one, ones = np.zeros((1, 2), int), np.ones((1, 2), bool)
    sums = sums_of(swapped, boxes, keypoints, one, ones)
    assert sums["keypoint_l1"] == pytest.approx(0, abs=1e-6)
    assert sums["keypoint_distance"] == pytest.approx(0, abs=1e-6)
    apart = sums_of(swapped, boxes, keypoints, np.array([[0, 1]]), ones)
    assert apart["keypoint_l1"] > 0.1


@pytest.mark.parametrize("config", [CONFIG, MEAN], ids=["oks", "mean"])
def test_unlabelled_points_and_empty_references_get_no_gradient(config) -> None:
    rng = np.random.default_rng(1)
    (boxes, keypoints), (found, points) = person(rng, 4), person(rng, 4)
    valid = np.array([[True, False, True, False]])
    keypoints[0, 0, :, 2], keypoints[0, 2, :, 2] = [0, 1, 2, 0], 0
    for array in (boxes, keypoints, points):
        array[~valid] = np.nan
    pred = outputs(points[..., :2], found)
    targets = [jnp.asarray(a) for a in (boxes, keypoints, np.zeros((1, 4), int), valid)]

    def total(p: KeypointOutputs):
        return sum(SUMS(p, *targets, config=config).values())

    value, grad = jax.jit(jax.value_and_grad(total))(pred)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grad))
    assert all(not np.asarray(leaf)[~valid].any() for leaf in jax.tree.leaves(grad))
    moved = np.abs(np.asarray(grad.points)).sum(-1)[0] > 0
    assert moved[0, 1:3].all()
    assert moved[0, [0, 3]].any() == moved[2].any() == (config is MEAN)


def test_a_perfect_answer_has_finite_gradients() -> None:
    boxes, keypoints = person(np.random.default_rng(2), 2)
    pred = outputs(keypoints[..., :2], boxes)
    targets = [jnp.asarray(a) for a in (boxes, keypoints, np.zeros((1, 2), int))]
    ones = jnp.ones((1, 2), bool)

    def total(p: KeypointOutputs, config: KeypointUnitConfig) -> jax.Array:
        return sum(SUMS(p, *targets, ones, config=config).values())

    gradient = jax.jit(jax.grad(total), static_argnums=1)
    for config in (CONFIG, MEAN):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(pred, config)))


def test_nothing_valid_is_zero() -> None:
    boxes, keypoints = person(np.random.default_rng(2), 3)
    none = np.zeros((1, 3), bool)
    args = (boxes, keypoints, np.full((1, 3), -1), none)
    sums = sums_of(outputs(keypoints[..., :2], boxes), *args)
    counts = keypoint_loss_counts(jnp.asarray(keypoints), jnp.asarray(none), CONFIG)
    assert set(sums.values()) == {0.0} == {float(v) for v in counts.values()}


def test_counts_and_weights_name_the_sums() -> None:
    boxes, keypoints = person(np.random.default_rng(2), 3)
    keypoints[0, 1, :, 2], keypoints[0, [0, 2], 0, 2] = 0, 1
    ones = np.ones((1, 3), bool)
    for aux in (0.5, 0.0):
        config = dataclasses.replace(CONFIG, auxiliary_weight=aux)
        args = (boxes, keypoints, np.zeros((1, 3), int), ones)
        sums = sums_of(outputs(keypoints[..., :2], boxes), *args, config)
        counts = keypoint_loss_counts(jnp.asarray(keypoints), jnp.asarray(ones), config)
        assert sums.keys() == counts.keys() == keypoint_loss_weights(config).keys()
        # An object without a labelled point has no OKS.
        assert counts["keypoint_distance"] == 2 and counts["keypoint_l1"] == 3
        assert len(sums) == (7 if aux else 5)
