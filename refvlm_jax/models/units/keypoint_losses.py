"""Keypoint losses as sums over references; the caller divides by the counts beside them.

Shape legend: `B` rows, `R` references a row, `K` body points.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from refvlm_jax.config.model import KeypointUnitConfig
from refvlm_jax.models.units.keypoint import KeypointOutputs
from refvlm_jax.models.units.losses import box_loss_sums, match_boxes, matched, sigmoid_focal

Sums = dict[str, Float[Array, ""]]
_EPS = 1e-6


def keypoint_loss_weights(config: KeypointUnitConfig, coefficient: float = 1.0) -> dict[str, float]:
    """Weight of every term of `keypoint_loss_sums`."""
    weights = {
        "keypoint_box_l1": config.box.bbox_weight,
        "keypoint_box_giou": config.box.giou_weight,
        "keypoint_l1": config.keypoint_weight,
        "keypoint_distance": config.distance_weight,
        "keypoint_visibility": config.visibility_weight,
    }
    if config.auxiliary_weight:
        weights["keypoint_first_l1"] = config.auxiliary_weight * config.box.bbox_weight
        weights["keypoint_first_giou"] = config.auxiliary_weight * config.box.giou_weight
    return {name: coefficient * weight for name, weight in weights.items()}


def keypoint_loss_counts(
    keypoints: Float[Array, "B R K 3"], valid: Bool[Array, "B R"], config: KeypointUnitConfig
) -> Sums:
    """References each term is averaged over; an OKS exists where some point is labelled."""
    every = jnp.asarray(valid).sum().astype(jnp.float32)
    counts = dict.fromkeys(keypoint_loss_weights(config), every)
    if config.distance_loss == "oks":
        labelled = (_labelled(keypoints) & valid[..., None]).any(-1)
        counts["keypoint_distance"] = labelled.sum().astype(jnp.float32)
    return counts


def keypoint_loss_sums(
    pred: KeypointOutputs,
    boxes: Float[Array, "B R 4"],
    keypoints: Float[Array, "B R K 3"],
    group: Int[Array, "B R"],
    valid: Bool[Array, "B R"],
    config: KeypointUnitConfig,
) -> Sums:
    """Sum of every term over valid references, after matching the groups by their boxes.

    Args:
      pred: the unit's outputs in the order of the reference table.
      boxes: targets (cx, cy, w, h) / padded side.
      keypoints: targets (x, y) / padded side and visibility: 0 unlabelled, 1 hidden, 2 visible.
    """
    if config.box.group_matching:
        found = pred.boxes.astype(jnp.float32)
        index = match_boxes(found, boxes, group, valid, config.box)
        boxes_to, keypoints = matched(boxes, index), matched(keypoints, index)
    else:
        boxes_to = boxes
    # The pairing by the final boxes holds for every term but the auxiliary one.
    paired = dataclasses.replace(config.box, group_matching=False)
    final = box_loss_sums(pred.boxes, boxes_to, group, valid, paired)
    sums = {f"keypoint_{name}": value for name, value in final.items()}
    sums |= _point_sums(pred, boxes_to, keypoints, valid, config)
    if config.auxiliary_weight:
        first = box_loss_sums(pred.first_boxes, boxes, group, valid, config.box)
        sums |= {name.replace("box", "keypoint_first"): value for name, value in first.items()}
    return sums


def object_similarity(
    points: Float[Array, "*b K 2"],
    keypoints: Float[Array, "*b K 3"],
    area: Float[Array, "*b"],
    sigmas: tuple[float, ...],
) -> Float[Array, "*b"]:
    """Object keypoint similarity of the COCO protocol; 0 where no point is labelled.

    exp(-d^2 / (2 area (2 sigma)^2)) averaged over labelled points, lengths and area in one unit.
    """
    labelled = _labelled(keypoints)
    # Unlabelled points hold anything: their distance must not reach the gradient.
    offset = jnp.where(labelled[..., None], points - keypoints[..., :2], 0.0)
    spread = 2.0 * (2.0 * np.asarray(sigmas, np.float32)) ** 2
    scaled = jnp.square(offset).sum(-1) / (spread * jnp.maximum(area, _EPS)[..., None])
    near = jnp.where(labelled, jnp.exp(-scaled), 0.0)
    return near.sum(-1) / jnp.maximum(labelled.sum(-1), 1)


def _point_sums(
    pred: KeypointOutputs,
    boxes: Float[Array, "B R 4"],
    keypoints: Float[Array, "B R K 3"],
    valid: Bool[Array, "B R"],
    config: KeypointUnitConfig,
) -> Sums:
    # Empty references hold anything, NaN too; they compare constants and so pass no gradient.
    keep = valid[..., None, None]
    points = jnp.where(keep, pred.points.astype(jnp.float32), 0.5)
    logits = jnp.where(keep, pred.visibility.astype(jnp.float32), 0.0)
    truth = jnp.where(keep, keypoints, 0.0)
    labelled = _labelled(truth)
    offset = points - truth[..., :2]
    l1 = jnp.where(labelled, jnp.abs(jnp.where(labelled[..., None], offset, 0.0)).sum(-1), 0.0)
    # Hidden points count as visible: their place is known.
    classes = jnp.stack([~labelled, labelled], axis=-1).astype(jnp.float32)
    focal = sigmoid_focal(logits, classes).mean(-1).sum(-1)
    if config.distance_loss == "oks":
        box = jnp.where(valid[..., None], boxes, 0.0)
        similarity = object_similarity(points, truth, box[..., 2] * box[..., 3], config.sigmas)
        distance = jnp.where(labelled.any(-1), 1.0 - similarity, 0.0)
    else:
        # As released: a distance to unlabelled points too, which lie where the data put them.
        distance = jnp.sqrt(jnp.square(offset + _EPS).sum(-1)).mean(-1)
    return {
        "keypoint_l1": l1.sum(),
        "keypoint_visibility": jnp.where(valid, focal, 0.0).sum(),
        "keypoint_distance": jnp.where(valid, distance, 0.0).sum(),
    }


def _labelled(keypoints: Float[Array, "*b K 3"]) -> Bool[Array, "*b K"]:
    return keypoints[..., 2] > 0
