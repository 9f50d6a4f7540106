"""Depth losses as sums over references; the caller divides by the counts beside them.

Targets may be sparse. A reference without a known pixel adds nothing to a sum or a count.
Shape legend: `B` rows, `R` depth slots a row, `M` side of a target, `P` pixels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from refvlm_jax.config.model import DepthUnitConfig

Sums = dict[str, Float[Array, ""]]
_EPS = 1e-6
_FLAT = 1e-3
"""Least deviation a prediction is divided by: a flat one must not have an endless slope."""


def depth_loss_weights(config: DepthUnitConfig, coefficient: float = 1.0) -> dict[str, float]:
    """Weight of every term of `depth_loss_sums`."""
    weights = {"depth_affine": config.affine_weight, "depth_gradient": config.gradient_weight}
    if config.mode == "metric":
        weights["depth_silog"] = config.silog_weight
    return {name: coefficient * weight for name, weight in weights.items()}


def depth_loss_counts(
    known: Bool[Array, "B R M M"],
    relative: Bool[Array, "B R"],
    valid: Bool[Array, "B R"],
    config: DepthUnitConfig,
) -> Sums:
    """References each term is averaged over."""
    answered = _answered(known, valid)
    aligned = _aligned(relative, config)
    counts = {"depth_affine": answered & aligned, "depth_gradient": answered}
    if config.mode == "metric":
        counts["depth_silog"] = answered & ~aligned
    return {name: which.sum().astype(jnp.float32) for name, which in counts.items()}


def depth_loss_sums(
    pred: Float[Array, "B R y x"],
    target: Float[Array, "B R M M"],
    known: Bool[Array, "B R M M"],
    relative: Bool[Array, "B R"],
    valid: Bool[Array, "B R"],
    config: DepthUnitConfig,
) -> Sums:
    """Sums over references: SILog where metres meet metres, else the affine-invariant error.

    Metric predictions learn from relative targets through their inverse. The gradient term takes
    the error of log depth in the first case, of aligned inverse depth in the second.

    Args:
      pred: the unit's output, resized to the target bilinearly.
      target: metres, or inverse depth up to scale and shift where `relative`; anything elsewhere.
      known: pixels with a target; padding of the square has none.
    """
    answered = _answered(known, valid)
    aligned = _aligned(relative, config)
    known = known & answered[..., None, None]
    wide = jax.image.resize(pred.astype(jnp.float32), target.shape, "bilinear", antialias=False)
    # Unknown pixels hold anything: a constant in their place passes no gradient and no NaN.
    wide = jnp.where(known, wide, 1.0)
    metres = jnp.where(known & ~relative[..., None, None], target.astype(jnp.float32), 1.0)
    metres = jnp.maximum(metres, _EPS)
    other = jnp.where(known & relative[..., None, None], target.astype(jnp.float32), 1.0)
    inverse = jnp.where(relative[..., None, None], other, 1.0 / metres)

    answer = wide if config.mode == "relative" else 1.0 / jnp.maximum(wide, _EPS)
    apart = align(answer, known, floor=_FLAT) - align(inverse, known)
    affine = _mean(jnp.abs(apart), known)
    error = apart
    sums: Sums = {}
    if config.mode == "metric":
        log_error = jnp.log(jnp.maximum(wide, _EPS)) - jnp.log(metres)
        silog = scale_invariant_log(log_error, known, config.silog_variance)
        sums["depth_silog"] = jnp.where(answered & ~aligned, silog, 0.0).sum()
        error = jnp.where(aligned[..., None, None], apart, log_error)
    gradient = multi_scale_gradient(error, known, config.gradient_scales)
    return sums | {
        "depth_affine": jnp.where(answered & aligned, affine, 0.0).sum(),
        "depth_gradient": jnp.where(answered, gradient, 0.0).sum(),
    }


def scale_invariant_log(
    log_error: Float[Array, "*b y x"], known: Bool[Array, "*b y x"], variance: float
) -> Float[Array, "*b"]:
    """sqrt(mean(g^2) - variance * mean(g)^2) of log errors g (arXiv 1406.2283), 0 for a match."""
    mean = _mean(log_error, known)
    # Spread and offset apart: the difference of the formula cancels digits and may fall below 0.
    spread = _mean(jnp.square(log_error - mean[..., None, None]), known)
    square = spread + (1.0 - variance) * jnp.square(mean)
    # The root has no slope at 0, where a perfect or an empty map sits.
    return jnp.sqrt(square + _EPS) - _EPS**0.5


def align(
    values: Float[Array, "*b y x"], known: Bool[Array, "*b y x"], *, floor: float = _EPS
) -> Float[Array, "*b y x"]:
    """Values minus their median, over their mean absolute deviation (MiDaS, arXiv 1907.01341).

    Equal for all a * values + b with a > 0 while the deviation is above `floor`; zero where nothing
    is known and for a flat map.
    """
    centre = masked_median(values, known)[..., None, None]
    away = jnp.where(known, values - centre, 0.0)
    scale = _mean(jnp.abs(away), known)
    return away / jnp.maximum(scale, floor)[..., None, None]


def masked_median(
    values: Float[Array, "*b y x"], known: Bool[Array, "*b y x"]
) -> Float[Array, "*b"]:
    """Lower median of the known values, as PyTorch counts; 0 where there is none."""
    flat = jnp.where(known, values, jnp.inf).reshape(*values.shape[:-2], -1)
    count = known.sum((-2, -1))
    place = jnp.maximum(count - 1, 0) // 2
    middle = jnp.take_along_axis(jnp.sort(flat, axis=-1), place[..., None], axis=-1)[..., 0]
    return jnp.where(count > 0, middle, 0.0)


def multi_scale_gradient(
    error: Float[Array, "*b y x"], known: Bool[Array, "*b y x"], scales: int
) -> Float[Array, "*b"]:
    """Mean absolute slope of the error between known neighbours, summed over resolutions.

    Each resolution keeps every second row and column of the one before (arXiv 1804.00607).
    """
    total = jnp.zeros(error.shape[:-2], jnp.float32)
    for _ in range(scales):
        down = (error[..., 1:, :] - error[..., :-1, :], known[..., 1:, :] & known[..., :-1, :])
        along = (error[..., 1:] - error[..., :-1], known[..., 1:] & known[..., :-1])
        for step, both in (down, along):
            total = total + _mean(jnp.abs(step), both)
        error, known = error[..., ::2, ::2], known[..., ::2, ::2]
    return total


def _mean(values: Float[Array, "*b y x"], known: Bool[Array, "*b y x"]) -> Float[Array, "*b"]:
    """Mean over known pixels, 0 without any."""
    count = jnp.maximum(known.sum((-2, -1)), 1)
    return jnp.where(known, values, 0.0).sum((-2, -1)) / count


def _answered(known: Bool[Array, "B R M M"], valid: Bool[Array, "B R"]) -> Bool[Array, "B R"]:
    return jnp.asarray(valid) & jnp.asarray(known).any((-2, -1))


def _aligned(relative: Bool[Array, "B R"], config: DepthUnitConfig) -> Bool[Array, "B R"]:
    """Whether prediction and target agree up to scale and shift only."""
    return jnp.asarray(relative) | (config.mode == "relative")
