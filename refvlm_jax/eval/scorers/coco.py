"""The COCO average precision protocol on plain lists of objects."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

SUMMARY = (
    "ap",
    "ap50",
    "ap75",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar1",
    "ar10",
    "ar100",
    "ar_small",
    "ar_medium",
    "ar_large",
)
"""The twelve numbers of the protocol in its own order."""
KEYPOINT_SUMMARY = (
    "ap",
    "ap50",
    "ap75",
    "ap_medium",
    "ap_large",
    "ar",
    "ar50",
    "ar75",
    "ar_medium",
    "ar_large",
)
"""The ten numbers of the protocol for keypoints."""
_SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}


def average_precision(
    images: Sequence[dict[str, Any]],
    annotations: Sequence[dict[str, Any]],
    detections: Sequence[dict[str, Any]],
    iou_type: str,
) -> dict[str, float]:
    """AP and AR over 10 IoU (or OKS) thresholds and 101 recall points.

    At most 1 / 10 / 100 detections a picture, 20 of keypoints.

    Numbers for a size nothing is annotated in are left out. All arguments are COCO objects; ids of
    annotations must start at 1.

    Args:
      iou_type: bbox, segm or keypoints.
    """
    summary = KEYPOINT_SUMMARY if iou_type == "keypoints" else SUMMARY
    counted = [a for a in annotations if not a["iscrowd"] and a.get("num_keypoints", 1)]
    sizes = [a["area"] for a in counted]
    present = {name for name, (low, high) in _SIZES.items() if any(low <= s < high for s in sizes)}
    names = [n for n in summary if n.rpartition("_")[2] not in _SIZES.keys() - present]
    if not sizes or not detections:
        return dict.fromkeys(names, 0.0)
    categories = sorted({a["category_id"] for a in annotations})
    dataset = {
        "info": {},
        "images": list(images),
        "annotations": list(annotations),
        "categories": [{"id": c, "name": str(c)} for c in categories],
    }
    stats = _evaluate(dataset, list(detections), iou_type)
    values = dict(zip(summary, stats, strict=False))
    return {name: max(float(values[name]), 0.0) for name in names}


def _evaluate(dataset: dict[str, Any], detections: list[Any], iou_type: str) -> np.ndarray:
    coco_class, eval_class = _backend()
    with contextlib.redirect_stdout(io.StringIO()):  # both print progress and tables
        truth = coco_class()
        truth.dataset = dataset
        truth.createIndex()
        evaluation = eval_class(truth, truth.loadRes(detections), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.asarray(evaluation.stats)


def _backend() -> tuple[Any, Any]:
    """The fast implementation, or the reference one where it cannot be loaded."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster

        return COCO, COCOeval_faster
    except ImportError:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
