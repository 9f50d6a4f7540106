"""Box and mask losses: hand-computed values, order within groups, padding, gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refvlm_jax.config.model import BoxUnitConfig, MaskUnitConfig
from refvlm_jax.models.units.losses import box_loss_sums, iou_and_giou, mask_loss_sums

BOX, MASK = BoxUnitConfig(), MaskUnitConfig()
box_sums_program = jax.jit(box_loss_sums, static_argnums=4)
mask_sums_program = jax.jit(mask_loss_sums, static_argnums=5)


def box_sums(pred, target, group, valid, config=BOX) -> dict[str, float]:
    arrays = (np.asarray(a)[None] for a in (pred, target, group, valid))
    return {k: float(v) for k, v in box_sums_program(*map(jnp.asarray, arrays), config).items()}


def test_giou_of_known_pairs() -> None:
    a = np.array([[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.2, 0.2], [0.5, 0.5, 0.4, 0.4]])
    b = np.array([[0.5, 0.5, 0.2, 0.2], [0.9, 0.9, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]])
    iou, giou = iou_and_giou(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(iou, [1.0, 0.0, 0.25], atol=1e-6)
    # Far corners: hull 1 x 1, union 0.08.
    np.testing.assert_allclose(giou, [1.0, -0.92, 0.25], atol=1e-6)


def test_boxes_without_area_give_finite_losses_and_gradients() -> None:
    point = jnp.array([[[0.5, 0.5, 0.0, 0.0]]])
    args = (jnp.zeros((1, 1), int), jnp.ones((1, 1), bool), BOX)
    both = jax.jit(jax.value_and_grad(lambda p: box_loss_sums(p, point, *args)["box_giou"]))
    sums, grad = both(point)
    assert np.isfinite(sums) and np.isfinite(grad).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.permutations(range(4)))
def test_order_of_targets_within_a_group_does_not_count(seed: int, order: list[int]) -> None:
    rng = np.random.default_rng(seed)
    pred, target = rng.uniform(0.2, 0.6, (2, 4, 4)).astype(np.float32)
    one, ones = np.zeros(4, int), np.ones(4, bool)
    plain, shuffled = box_sums(pred, target, one, ones), box_sums(pred, target[order], one, ones)
    assert plain == pytest.approx(shuffled, rel=1e-5)
    apart = dataclasses.replace(BOX, group_matching=False)
    assert sum(plain.values()) <= sum(box_sums(pred, target, one, ones, apart).values()) + 1.0


def test_empty_references_add_nothing_and_get_no_gradient() -> None:
    rng = np.random.default_rng(0)
    pred, target = jnp.asarray(rng.uniform(0.2, 0.6, (2, 1, 4, 4)).astype(np.float32))
    valid = jnp.array([[True, False, True, False]])
    target = jnp.where(valid[..., None], target, jnp.nan)

    def total(p: jax.Array) -> jax.Array:
        return sum(box_loss_sums(p, target, jnp.zeros((1, 4), int), valid, BOX).values())

    value, grad = jax.jit(jax.value_and_grad(total))(pred)
    assert np.isfinite(value)
    assert not np.asarray(grad)[0, [1, 3]].any() and np.asarray(grad)[0, [0, 2]].all()


def mask_sums(logits, targets, group=None, pixels=None, valid=None) -> dict[str, float]:
    slots, side = targets.shape[0], targets.shape[-1]
    group = np.zeros(slots, int) if group is None else group
    valid = np.ones(slots, bool) if valid is None else valid
    pixels = np.ones((slots, side, side), bool) if pixels is None else pixels
    arrays = (np.asarray(a)[None] for a in (logits, targets, group, valid, pixels))
    return {k: float(v) for k, v in mask_sums_program(*map(jnp.asarray, arrays), MASK).items()}


def squares(side: int) -> np.ndarray:
    """Two masks: the left and the right half of the picture."""
    masks = np.zeros((2, side, side), np.uint8)
    masks[0, :, : side // 2] = masks[1, :, side // 2 :] = 1
    return masks


def test_a_perfect_mask_costs_nothing_and_its_opposite_everything() -> None:
    targets = squares(8)
    good = mask_sums(20.0 * (2.0 * targets - 1), targets, group=np.array([0, 1]))
    bad = mask_sums(-20.0 * (2.0 * targets - 1), targets, group=np.array([0, 1]))
    assert good == pytest.approx({"mask_focal": 0, "mask_dice": 0}, abs=1e-4)
    assert bad["mask_dice"] == pytest.approx(2 * (1 - 1 / 65), abs=1e-4)


def test_undecided_logits_cost_what_the_formulas_say() -> None:
    targets = squares(8)[:1]
    sums = mask_sums(np.zeros((1, 8, 8)), targets)
    half = np.log(2) * 0.25
    assert sums["mask_focal"] == pytest.approx((0.25 * half + 0.75 * half) / 2, rel=1e-5)
    assert sums["mask_dice"] == pytest.approx(1 - (2 * 16 + 1) / (32 + 32 + 1), rel=1e-5)


def test_masks_of_a_group_may_answer_in_any_order() -> None:
    targets = squares(8)
    logits = 20.0 * (2.0 * targets[::-1] - 1)
    assert mask_sums(logits, targets)["mask_dice"] == pytest.approx(0, abs=1e-4)
    apart = mask_sums(logits, targets, group=np.array([0, 1]))
    assert apart["mask_dice"] > 1.9


def test_padding_of_the_square_does_not_count() -> None:
    targets, pixels = squares(8)[:1], np.zeros((1, 8, 8), bool)
    pixels[:, 2:6] = True
    logits = 20.0 * (2.0 * targets - 1)
    spoiled = np.where(pixels, logits, -logits)
    assert mask_sums(logits, targets, pixels=pixels) == mask_sums(spoiled, targets, pixels=pixels)


def test_empty_slots_are_ignored_whatever_they_hold() -> None:
    targets = squares(8)
    logits = np.stack([20.0 * (2.0 * targets[0] - 1), np.full((8, 8), np.nan)])
    sums = mask_sums(logits, targets, valid=np.array([True, False]))
    assert sums == pytest.approx({"mask_focal": 0, "mask_dice": 0}, abs=1e-4)
