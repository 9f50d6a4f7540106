"""Masks of records at the resolution of their picture, and overlaps between objects."""

from collections.abc import Sequence

import numpy as np

from refvlm_jax.eval.record_types import Box, Instance, Rle
from refvlm_jax.geometry import box_iou, clip_boxes
from refvlm_jax.rle import decode, tight_box


def load_mask(rle: Rle, height: int, width: int) -> np.ndarray:
    """bool[height, width] of a mask; one stored at another size is resampled (nearest pixel)."""
    h, w = rle["size"]
    mask = decode(rle["counts"].encode("ascii"), h, w).astype(np.bool_)
    if (h, w) == (height, width):
        return mask
    rows = ((np.arange(height) + 0.5) * h / height).astype(np.int64)
    cols = ((np.arange(width) + 0.5) * w / width).astype(np.int64)
    return mask[rows[:, None], cols[None, :]]


def union_mask(masks: Sequence[Rle], height: int, width: int) -> np.ndarray:
    """bool[height, width] of everything inside any of the masks."""
    result = np.zeros((height, width), np.bool_)
    for rle in masks:
        result |= load_mask(rle, height, width)
    return result


def clipped_box(box: Box | None, height: int, width: int) -> np.ndarray | None:
    """float64[4] inside the picture; None for no box or one that is not finite."""
    if box is None or not np.isfinite(box).all():
        return None
    return clip_boxes(np.array(box), width, height)


def box_of(instance: Instance, height: int, width: int) -> np.ndarray | None:
    """The box of an object inside the picture, or the one around its mask."""
    if instance.box is not None or instance.rle is None:
        return clipped_box(instance.box, height, width)
    h, w = instance.rle["size"]
    box = tight_box(instance.rle["counts"].encode("ascii"), h, w)
    return None if box is None else np.array(box) * np.tile([width / w, height / h], 2)


def mask_of(instance: Instance, height: int, width: int) -> np.ndarray | None:
    """bool[height, width] of an object; None when it has no mask."""
    return None if instance.rle is None else load_mask(instance.rle, height, width)


def iou_matrix(
    found: Sequence[Instance], truth: Sequence[Instance], unit: str, height: int, width: int
) -> np.ndarray:
    """IoU [found, truth] by box or by mask; 0 where either has none, and between empty masks."""
    if unit == "mask":
        return _mask_ious(
            [mask_of(i, height, width) for i in found], [mask_of(i, height, width) for i in truth]
        )
    return _box_ious(
        [box_of(i, height, width) for i in found], [box_of(i, height, width) for i in truth]
    )


def _box_ious(a: Sequence[np.ndarray | None], b: Sequence[np.ndarray | None]) -> np.ndarray:
    def stack(boxes: Sequence[np.ndarray | None]) -> np.ndarray:
        empty = np.zeros(4)
        return np.stack([empty if box is None else box for box in boxes] or [empty])

    return box_iou(stack(a), stack(b))[: len(a), : len(b)]


def _mask_ious(a: Sequence[np.ndarray | None], b: Sequence[np.ndarray | None]) -> np.ndarray:
    result = np.zeros((len(a), len(b)))
    for row, first in enumerate(a):
        for column, second in enumerate(b):
            if first is not None and second is not None:
                union = np.count_nonzero(first | second)
                shared = np.count_nonzero(first & second)
                result[row, column] = shared / union if union else 0.0
    return result
