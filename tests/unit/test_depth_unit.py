"""Depth unit: range, conditioning, gradients; the invariances of its losses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from refvlm_jax.config.model import DepthUnitConfig
from refvlm_jax.models.units.depth import DepthUnit
from refvlm_jax.models.units.depth_losses import (
    align,
    depth_loss_counts,
    depth_loss_sums,
    depth_loss_weights,
    masked_median,
    multi_scale_gradient,
    scale_invariant_log,
)

METRIC = DepthUnitConfig(
    num_queries=2, features=(0, 1), width=16, layers=2, heads=2, mlp_dim=16, norm_groups=4,
    bins=8, min_depth=0.5, max_depth=20.0, gradient_scales=2,
)  # fmt: skip
RELATIVE = dataclasses.replace(METRIC, mode="relative")
DIMS = (6, 10)


def inputs(scale: float = 1.0) -> tuple:
    rng = np.random.default_rng(0)
    shapes = zip((8, 4), DIMS, strict=True)
    maps = [jnp.asarray(scale * rng.normal(size=(2, n, n, c)), jnp.float32) for n, c in shapes]
    valid = jnp.array([[True, True], [True, False]])
    return jnp.asarray(scale * rng.normal(size=(2, 2, 12)), jnp.float32), valid, maps


@pytest.mark.parametrize("config", [METRIC, RELATIVE], ids=["metric", "relative"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_depth_lies_in_the_range(config: DepthUnitConfig, scale: float) -> None:
    unit = DepthUnit(config, DIMS, 12, nnx.Rngs(0))
    depth = np.asarray(unit(*inputs(scale)))
    assert depth.shape == (2, 2, 8, 8) and depth.dtype == np.float32
    low, high = (0.5, 20.0) if config is METRIC else (0.0, 1.0)
    assert (depth > low).all() and (depth < high).all()


def test_centres_rise_and_fill_the_range() -> None:
    unit = DepthUnit(METRIC, DIMS, 12, nnx.Rngs(0))
    states = jnp.asarray(100 * np.random.default_rng(0).normal(size=(1, 2, 16)), jnp.float32)
    centres = np.asarray(unit.centres(states))
    assert (np.diff(centres) > 0).all() and (centres > 0).all() and (centres < 1).all()


def test_the_query_and_the_picture_matter() -> None:
    unit = DepthUnit(METRIC, DIMS, 12, nnx.Rngs(0))
    queries, valid, maps = inputs()
    depth = np.asarray(unit(queries, valid, maps))
    assert np.abs(depth[0, 0] - depth[0, 1]).max() > 1e-3
    assert np.ptp(depth[0, 0]) > 1e-3
    assert not np.allclose(depth[0], unit(queries, valid, [2 * m for m in maps])[0], rtol=1e-3)
    # An empty slot is not seen by the others.
    noisy = unit(queries.at[1, 1].set(9.0), valid, maps)
    np.testing.assert_allclose(noisy[1, 0], depth[1, 0], rtol=1e-5)


def test_bad_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"min_depth=0.*0 < min_depth < max_depth"):
        DepthUnit(dataclasses.replace(METRIC, min_depth=0.0), DIMS, 12, nnx.Rngs(0))


def test_the_unit_learns_a_picture() -> None:
    unit = DepthUnit(dataclasses.replace(METRIC, dropout=0.0), DIMS, 12, nnx.Rngs(0))
    graph, state = nnx.split(unit)
    queries, valid, maps = inputs()
    target = jnp.asarray(np.random.default_rng(1).uniform(1, 10, (2, 2, 8, 8)), jnp.float32)
    known = jnp.ones(target.shape, bool)
    metric = jnp.zeros((2, 2), bool)

    @jax.jit
    def step(s):
        def loss(s):
            depth = nnx.merge(graph, s)(queries, valid, maps)
            return depth_loss_sums(depth, target, known, metric, valid, METRIC)["depth_silog"]

        value, grad = jax.value_and_grad(loss)(s)
        size = jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(grad)))
        return value, size, jax.tree.map(lambda p, g: p - 0.05 * g / size, s, grad)

    first, size, state = step(state)
    for _ in range(60):
        last, size, state = step(state)
        assert np.isfinite(size)
    assert last < 0.7 * first


# Losses

SUMS = jax.jit(depth_loss_sums, static_argnames="config")


def scene(seed: int, side: int = 8, slots: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted and true depth and the known pixels, about half."""
    rng = np.random.default_rng(seed)
    pred, target = rng.uniform(1.0, 10.0, (2, 1, slots, side, side)).astype(np.float32)
    return pred, target, rng.random((1, slots, side, side)) < 0.5


def sums_of(pred, target, known, relative=False, config=METRIC, valid=True) -> dict[str, float]:
    flags = [np.broadcast_to(f, known.shape[:2]) for f in (relative, valid)]
    arrays = [jnp.asarray(a) for a in (pred, target, known, *flags)]
    sums = SUMS(*arrays, config=config)
    counts = depth_loss_counts(*arrays[2:], config)
    assert sums.keys() == counts.keys() == depth_loss_weights(config).keys()
    return {k: float(v) for k, v in sums.items()}


def test_silog_by_hand() -> None:
    error, known = np.zeros((1, 3)), np.array([[True, True, False]])
    error[0] = [np.log(2.0), 0.0, 55.0]
    half = np.log(2.0) / 2
    for variance in (1.0, 0.85, 0.0):
        want = np.sqrt(half**2 + (1 - variance) * half**2)
        found = scale_invariant_log(jnp.asarray(error), jnp.asarray(known), variance)
        assert float(found) == pytest.approx(want, abs=2e-3)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(0.2, 5.0))
def test_silog_forgives_scale_only_if_told(seed: int, scale: float) -> None:
    pred, target, known = scene(seed)
    free = dataclasses.replace(METRIC, silog_variance=1.0)
    plain, scaled = (sums_of(scale_ * pred, target, known, config=free) for scale_ in (1.0, scale))
    assert plain["depth_silog"] == pytest.approx(scaled["depth_silog"], rel=1e-3)
    # Slopes of log depth do not see the scale either.
    assert plain["depth_gradient"] == pytest.approx(scaled["depth_gradient"], rel=1e-3)
    strict = dataclasses.replace(METRIC, silog_variance=0.0)
    exact = sums_of(target, target, known, config=strict)["depth_silog"]
    wrong = sums_of(scale * target, target, known, config=strict)["depth_silog"]
    assert exact == pytest.approx(0, abs=1e-4)
    off = 2 * (np.sqrt(np.log(scale) ** 2 + 1e-6) - 1e-3)  # of two slots, with the root's floor
    assert wrong == pytest.approx(off, rel=1e-3, abs=1e-4)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10.0), st.floats(-3.0, 3.0))
def test_affine_loss_forgives_scale_and_shift(seed: int, scale: float, shift: float) -> None:
    pred, target, known = scene(seed)
    plain = sums_of(pred, target, known, True, RELATIVE)
    moved = sums_of(scale * pred + shift, target, known, True, RELATIVE)
    assert plain == pytest.approx(moved, rel=2e-3, abs=1e-4)
    fit = sums_of(scale * target + shift, target, known, True, RELATIVE)
    assert fit["depth_affine"] == pytest.approx(0, abs=1e-3)
    assert plain["depth_affine"] > 0.1
    # Turned around, near is far: not forgiven.
    assert sums_of(-target, target, known, True, RELATIVE)["depth_affine"] > 0.5


def test_metric_answers_learn_from_relative_targets_through_their_inverse() -> None:
    _, depth, known = scene(0)
    inverse = 3.0 / depth - 0.1
    sums = sums_of(depth, inverse, known, True)
    assert sums["depth_silog"] == 0.0 and sums["depth_affine"] == pytest.approx(0, abs=1e-4)
    assert sums_of(depth, depth, known, False, METRIC)["depth_affine"] == 0.0
    # And relative answers from metres.
    sums = sums_of(inverse, depth, known, False, RELATIVE)
    assert sums["depth_affine"] == pytest.approx(0, abs=1e-4) and "depth_silog" not in sums


def test_median_and_deviation_by_hand() -> None:
    values = jnp.array([[[5.0, 1.0, 9.0, 2.0]], [[1.0, 2.0, 3.0, 4.0]], [[7.0, 7.0, 7.0, 7.0]]])
    known = jnp.array([[[1, 1, 0, 1]], [[1, 1, 1, 1]], [[0, 0, 0, 0]]], bool)
    np.testing.assert_array_equal(masked_median(values, known), [2.0, 2.0, 0.0])
    # Deviations 3, 1, 0: their mean is 4/3.
    np.testing.assert_allclose(align(values, known)[0, 0], [9 / 4, -3 / 4, 0, 0], rtol=1e-6)
    assert not np.asarray(align(values, known)[2]).any()


def test_gradient_loss_by_hand() -> None:
    error = jnp.asarray(np.arange(4.0)[None, :] * np.ones((4, 1)))
    known = jnp.ones((4, 4), bool)
    # Slope 1 along, then 2 after halving; nothing down.
    assert float(multi_scale_gradient(error, known, 2)) == pytest.approx(3.0)
    # Every second column known: no neighbours at the first resolution, all at the second.
    comb = known & (jnp.arange(4) % 2 == 0)
    assert float(multi_scale_gradient(error, comb, 2)) == pytest.approx(2.0)


@pytest.mark.parametrize("config", [METRIC, RELATIVE], ids=["metric", "relative"])
@pytest.mark.parametrize("relative", [True, False])
def test_unknown_pixels_count_nowhere(config: DepthUnitConfig, relative: bool) -> None:
    pred, target, known = scene(2, slots=4)
    known[0, 1] = False
    target = np.where(known, target, np.nan)
    valid = np.array([[True, True, False, True]])
    target[0, 2] = np.nan
    flags = [jnp.asarray(np.broadcast_to(relative, (1, 4))), jnp.asarray(valid)]
    arrays = [jnp.asarray(a) for a in (target, known)]

    def total(p):
        return sum(SUMS(p, *arrays, *flags, config=config).values())

    value, grad = jax.jit(jax.value_and_grad(total))(jnp.asarray(pred))
    assert np.isfinite(value) and value > 0 and np.isfinite(grad).all()
    assert not np.asarray(grad)[~known].any() and not np.asarray(grad)[0, 1:3].any()
    assert np.asarray(grad)[0, 0].any()
    counts = depth_loss_counts(arrays[1], *flags, config)
    assert counts["depth_gradient"] == 2
    assert float(sum(v for k, v in counts.items() if k != "depth_gradient")) == 2


def test_no_known_pixel_at_all_is_zero_with_zero_gradient() -> None:
    pred, target, known = scene(3)
    arrays = [jnp.asarray(a) for a in (target * np.nan, known & False)]
    flags = [jnp.zeros((1, 2), bool), jnp.ones((1, 2), bool)]

    def total(p):
        return sum(SUMS(p, *arrays, *flags, config=METRIC).values())

    value, grad = jax.jit(jax.value_and_grad(total))(jnp.asarray(pred))
    assert value == 0 and not np.asarray(grad).any()


@pytest.mark.parametrize("config", [METRIC, RELATIVE], ids=["metric", "relative"])
def test_flat_and_perfect_maps_have_finite_gradients(config: DepthUnitConfig) -> None:
    _, target, known = scene(4)
    arrays = [jnp.asarray(a) for a in (target, known)]
    flags = [jnp.array([[False, True]]), jnp.ones((1, 2), bool)]
    gradient = jax.jit(jax.grad(lambda p: sum(SUMS(p, *arrays, *flags, config=config).values())))
    for pred in (target, np.full_like(target, 2.0)):
        assert np.isfinite(gradient(jnp.asarray(pred))).all()


def test_prediction_is_resized_to_the_target() -> None:
    pred, target = np.full((1, 1, 4, 4), 2.0, np.float32), np.full((1, 1, 12, 12), 2.0, np.float32)
    assert sums_of(pred, target, np.ones(target.shape, bool))["depth_silog"] == pytest.approx(0)
