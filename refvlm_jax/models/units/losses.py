"""Box and mask losses as sums over references; the caller divides by the global count.

Shape legend: `B` rows, `R` references or mask slots a row, `M` side of a mask target.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from refvlm_jax.config.model import BoxUnitConfig, MaskUnitConfig, SamUnitConfig
from refvlm_jax.models.units.matching import match_groups

Boxes = Float[Array, "*b 4"]
_ALPHA, _GAMMA = 0.25, 2.0


def corners(boxes: Boxes) -> Boxes:
    """(cx, cy, w, h) to (x1, y1, x2, y2)."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def iou_and_giou(a: Boxes, b: Boxes) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
    """IoU and generalised IoU (arXiv 1902.09630) of cxcywh boxes; degenerate boxes are finite."""
    p, q = corners(a), corners(b)
    inner = jnp.prod(
        jnp.maximum(jnp.minimum(p[..., 2:], q[..., 2:]) - jnp.maximum(p[..., :2], q[..., :2]), 0),
        -1,
    )
    hull = jnp.prod(
        jnp.maximum(p[..., 2:], q[..., 2:]) - jnp.minimum(p[..., :2], q[..., :2]), axis=-1
    )
    union = jnp.prod(a[..., 2:], -1) + jnp.prod(b[..., 2:], -1) - inner
    iou = inner / jnp.maximum(union, 1e-9)
    return iou, iou - (hull - union) / jnp.maximum(hull, 1e-9)


def box_loss_sums(
    pred: Float[Array, "B R 4"],
    target: Float[Array, "B R 4"],
    group: Int[Array, "B R"],
    valid: Bool[Array, "B R"],
    config: BoxUnitConfig,
) -> dict[str, Float[Array, ""]]:
    """Sums of |p - t| and of 1 - GIoU over valid references, after group matching."""
    pred = pred.astype(jnp.float32)
    if config.group_matching:
        target = matched(target, match_boxes(pred, target, group, valid, config))
    # Empty references compare a box with itself: zero loss and no stray gradient.
    safe = jnp.where(valid[..., None], pred, jnp.float32(0.5))
    target = jnp.where(valid[..., None], target, jnp.float32(0.5))
    _, giou = iou_and_giou(safe, target)
    return {
        "box_l1": jnp.abs(safe - target).sum(),
        "box_giou": jnp.where(valid, 1.0 - giou, 0.0).sum(),
    }


def match_boxes(
    pred: Float[Array, "B R 4"],
    target: Float[Array, "B R 4"],
    group: Int[Array, "B R"],
    valid: Bool[Array, "B R"],
    config: BoxUnitConfig,
) -> Int[Array, "B R"]:
    """Index of the target each prediction is compared with: the cheapest pairing of its group."""
    return match_groups(_box_cost(pred, target, config), group, valid)


def matched(target: Float[Array, "B R *rest"], index: Int[Array, "B R"]) -> Array:
    """Targets in the order of the predictions that `match_groups` gave them."""
    extra = (1,) * (target.ndim - 2)
    return jnp.take_along_axis(target, index.reshape(*index.shape, *extra), axis=1)


def _box_cost(pred: Array, target: Array, config: BoxUnitConfig) -> Float[Array, "B R R"]:
    distance = jnp.abs(pred[:, :, None] - target[:, None, :]).sum(-1)
    _, giou = iou_and_giou(pred[:, :, None], target[:, None, :])
    return config.bbox_weight * distance - config.giou_weight * giou


def mask_loss_sums(
    logits: Float[Array, "B R y x"],
    targets: Array,
    group: Int[Array, "B R"],
    valid: Bool[Array, "B R"],
    pixels: Bool[Array, "B R M M"],
    config: MaskUnitConfig | SamUnitConfig,
) -> dict[str, Float[Array, ""]]:
    """Sums of the focal and dice losses over valid slots, on real pixels, after group matching.

    Args:
      targets: uint8[B, R, M, M] in {0, 1}.
      pixels: real picture inside the padded square of the image a slot belongs to.
    """
    logits = jnp.where(valid[..., None, None], logits.astype(jnp.float32), 0.0)
    truth = targets.astype(jnp.float32)
    if config.group_matching:
        truth = matched(truth, match_groups(_mask_cost(logits, truth, config), group, valid))
    side = truth.shape[-1]
    wide = jax.image.resize(logits, truth.shape, "bilinear", antialias=False)
    real, keep = pixels.astype(jnp.float32), valid.astype(jnp.float32)
    focal = (real * sigmoid_focal(wide, truth)).sum((-2, -1)) / jnp.maximum(real.sum((-2, -1)), 1.0)
    inside, truth_inside = real * jax.nn.sigmoid(wide), real * truth
    overlap = 2 * (inside * truth_inside).sum((-2, -1)) + 1
    dice = 1 - overlap / (inside.sum((-2, -1)) + truth_inside.sum((-2, -1)) + 1)
    assert side == pixels.shape[-1]
    return {"mask_focal": (keep * focal).sum(), "mask_dice": (keep * dice).sum()}


def sigmoid_focal(x: Array, t: Array) -> Array:
    """Sigmoid focal loss per logit (arXiv 1708.02002)."""
    p = jax.nn.sigmoid(x)
    positive = _ALPHA * (1 - p) ** _GAMMA * jax.nn.softplus(-x)
    negative = (1 - _ALPHA) * p**_GAMMA * jax.nn.softplus(x)
    return t * positive + (1 - t) * negative


def _mask_cost(
    logits: Array, truth: Array, config: MaskUnitConfig | SamUnitConfig
) -> Float[Array, "B R R"]:
    """Pairwise cost at the logits' resolution; targets are sampled at cell floor(i * M / y)."""
    y, x = logits.shape[-2:]
    rows, columns = (np.arange(n) * truth.shape[-1] // n for n in (y, x))
    small = truth[:, :, rows][:, :, :, columns].reshape(*truth.shape[:2], -1)
    flat = jax.lax.stop_gradient(logits).reshape(*logits.shape[:2], -1)
    p = jax.nn.sigmoid(flat)
    positive = _ALPHA * (1 - p) ** _GAMMA * jax.nn.softplus(-flat)
    negative = (1 - _ALPHA) * p**_GAMMA * jax.nn.softplus(flat)
    pair = lambda a, b: jnp.einsum("brn,bsn->brs", a, b)  # noqa: E731
    focal = (pair(positive, small) + pair(negative, 1 - small)) / flat.shape[-1]
    total = p.sum(-1)[:, :, None] + small.sum(-1)[:, None, :]
    dice = 1 - (2 * pair(p, small) + 1) / (total + 1)
    return config.focal_weight * focal + config.dice_weight * dice
