"""Validation rules of a record's regions: boxes, masks, keypoints, depth, prompts (V04 to V09, V21)."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from data_pipelines.rasterise import vanishes
from data_pipelines.records import Depth, Dialog, Mask, MediaRef, PromptKind, Region
from data_pipelines.tasks import TASKS
from refvlm_jax import rle
from refvlm_jax.geometry import box_iou
from refvlm_jax.trp.tokens import Unit

Found = Iterator[tuple[str, str, str]]
"""Code, level and message of every broken rule."""
COARSEST_GRID = 256
"""Cells of a side of the coarsest grid that masks are learned on."""
_LEAST_IOU = 0.5
_MOST_SIDE = 65536
_DRAWN = ("T21", "T22")
"""Tasks whose prompt is drawn by hand near the target, not given by the target."""


def region_findings(dialog: Dialog) -> Found:
    """What is wrong with the regions of a record, the picture unseen."""
    shown = {p.region for t in dialog.turns for p in t.prompts}
    aimed = {k for t in dialog.turns for s in t.spans for k in s.targets}
    if dialog.image is not None and (problem := _size_problem(dialog.image)):
        yield "V02", "E", problem
        return
    for number, region in enumerate(dialog.regions):
        if dialog.image is None:
            yield "V04", "E", f"region {number} without a picture"
            return
        only_shown = number in shown - aimed
        for code, level, message in _region(region, dialog.image, only_shown):
            yield code, level, f"region {number}: {message}"
    yield from _drawn_prompts(dialog)


def vanishing(dialog: Dialog) -> set[int]:
    """Mask targets that disappear on the grid they are learned on (V07)."""
    image = dialog.image
    if image is None or _size_problem(image):
        return set()
    targets = {k for t in dialog.turns for s in t.spans if s.unit is Unit.MASK for k in s.targets}
    return {
        k
        for k in targets & set(range(len(dialog.regions)))
        if (mask := dialog.regions[k].mask) is not None
        and _mask_problem(mask, image) is None
        and rle.area(mask.counts, mask.h, mask.w)
        and vanishes(mask, image.width, image.height, COARSEST_GRID)
    }


def _size_problem(image: MediaRef) -> str | None:
    sides = (image.width, image.height)
    whole = all(isinstance(side, int) and 0 < side < _MOST_SIDE for side in sides)
    return None if whole else f"picture of {image.width} x {image.height} pixels"


def _region(region: Region, image: MediaRef, only_shown: bool) -> Found:
    if region.box is not None and (problem := _box_problem(region.box, image)):
        yield "V05", "E", problem
    elif region.mask is not None:
        yield from _mask(region, region.mask, image, only_shown)
    if region.point is not None and (problem := _point_problem(region.point, image)):
        yield "V05", "E", problem
    if region.no_mask_loss:
        yield "V07", "W", "the mask vanishes at the training grid"
    if region.keypoints and (problem := keypoint_problem(region.keypoints, image)):
        yield "V08", "E", problem
    if region.depth is not None and (problem := _depth_problem(region.depth)):
        yield "V09", "E", problem
    if region.category != " ".join(region.category.replace("_", " ").split()):
        yield "V18", "E", f"category {region.category!r} is not written as words"


def _box_problem(box: Sequence[float], image: MediaRef) -> str | None:
    x1, y1, x2, y2 = box
    if not (0 <= x1 < x2 <= image.width and 0 <= y1 < y2 <= image.height):
        return f"box {tuple(box)} not inside the picture"
    return None if (x2 - x1) * (y2 - y1) >= 1 else f"box {tuple(box)} covers less than one pixel"


def _point_problem(point: Sequence[float], image: MediaRef) -> str | None:
    x, y = point
    inside = -1 <= x <= image.width + 1 and -1 <= y <= image.height + 1
    return None if inside else f"point {tuple(point)} not inside the picture"


def _mask(region: Region, mask: Mask, image: MediaRef, only_shown: bool) -> Found:
    if problem := _mask_problem(mask, image):
        yield "V06", "E", problem
        return
    tight = rle.tight_box(mask.counts, mask.h, mask.w)
    if tight is None:
        yield ("V21" if only_shown else "V06"), "E", "the mask covers nothing"
    elif region.box is not None:
        wide, high = image.width / mask.w, image.height / mask.h
        around = [v * scale for v, scale in zip(tight, (wide, high, wide, high), strict=True)]
        if box_iou(np.array([around]), np.array([region.box]))[0, 0] < _LEAST_IOU:
            yield "V06", "W", f"box {tuple(region.box)} is not the one around the mask"


def _mask_problem(mask: Mask, image: MediaRef) -> str | None:
    if not (0 < mask.h < _MOST_SIDE and 0 < mask.w < _MOST_SIDE):
        return f"mask of {mask.w} x {mask.h} pixels"
    wide = mask.w * image.height
    if abs(wide - mask.h * image.width) > 0.01 * wide:
        return "mask and picture differ in aspect"
    try:
        rle.runs(mask.counts, mask.h, mask.w)
    except ValueError as error:
        return str(error)
    return None


def keypoint_problem(points: Sequence[Sequence[float]], image: MediaRef) -> str | None:
    """What is wrong with the joints [K, 3] of a person, or None."""
    if any(len(p) != 3 or not all(map(math.isfinite, p)) for p in points):
        return "keypoints are not finite x, y, v triples"
    if any(v not in (0, 1, 2) for _, _, v in points):
        return "a visibility of the keypoints is not 0, 1 or 2"
    labelled = [(x, y) for x, y, v in points if v]
    if not labelled:
        return "no keypoint is labelled"
    if any(not (-1 <= x <= image.width + 1 and -1 <= y <= image.height + 1) for x, y in labelled):
        return f"a labelled keypoint lies outside the {image.width}x{image.height} picture"
    return None


def _depth_problem(depth: Depth) -> str | None:
    """What is wrong with a depth map as far as the record tells (see also `depths.depth_problem`)."""
    if depth.kind not in ("metric", "relative"):
        return f"depth kind {depth.kind!r} is neither metric nor relative"
    if not (math.isfinite(depth.scale) and depth.scale > 0 and math.isfinite(depth.offset)):
        return f"depth scale {depth.scale} or offset {depth.offset} is no number to use"
    return None if depth.path or depth.data else "the depth has neither a file nor bytes"


def _drawn_prompts(dialog: Dialog) -> Found:
    """A prompt that is drawn by hand must not be the target itself: it would give the answer away."""
    if dialog.task_id not in _DRAWN:
        return
    for number, turn in enumerate(dialog.turns):
        targets = {k for span in turn.spans for k in span.targets}
        for prompt in turn.prompts:
            given = (
                prompt.kind is PromptKind.MASK and PromptKind.MASK in TASKS[dialog.task_id].prompts
            )
            if prompt.region in targets and not given:
                yield (
                    "V21", "E",
                    f"turn {number}: the {prompt.kind.name} prompt is target region {prompt.region}",
                )  # fmt: skip
