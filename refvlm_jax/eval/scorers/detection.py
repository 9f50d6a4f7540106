"""Open-vocabulary detection and instance segmentation by the COCO protocol.

The category of an object is its phrase after normalisation; a predicted phrase that names no
annotated category cannot count for any (and is reported as a rate). Scores are the confidences of
the records: identical boxes with constant scores would get a much lower precision.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from refvlm_jax.eval.masks import box_of, mask_of
from refvlm_jax.eval.record_types import Instance, Prediction, Rle, Truth
from refvlm_jax.eval.scorers.coco import average_precision
from refvlm_jax.eval.scorers.pairing import Metrics, Predictions, counts, pair, ratio
from refvlm_jax.eval.text.phrase import normalise
from refvlm_jax.rle import area, encode

_ONE = 1
"""The only category where phrases do not matter."""


def score(
    truths: Sequence[Truth], predictions: Predictions, unit: str, *, by_phrase: bool = True
) -> Metrics:
    """The numbers of `coco.SUMMARY`, unknown_phrase_rate, n, n_missing.

    Args:
      truths: one entry a picture; crowd regions are in `ignore`.
      predictions: by uid.
      unit: box or mask.
      by_phrase: whether objects are told apart by phrase.
    """
    pairs = pair(truths, predictions)
    categories = _categories(truths) if by_phrase else {}
    images, annotations, detections = [], [], []
    known = total = 0
    for number, (truth, prediction) in enumerate(pairs, start=1):
        images.append({"id": number, "width": truth.width, "height": truth.height})
        annotations += list(_annotations(truth, categories, unit, number))
        for phrase, instance in _phrased(prediction):
            category = categories.get(phrase, 0) if by_phrase else _ONE
            total, known = total + 1, known + bool(category)
            found = _object(instance, truth, unit)
            if category and found is not None and np.isfinite(instance.score):
                names = {"image_id": number, "category_id": category, "score": instance.score}
                detections.append(found | names)
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    iou_type = "segm" if unit == "mask" else "bbox"
    result = average_precision(images, annotations, detections, iou_type)
    return result | {"unknown_phrase_rate": ratio(total - known, total), **counts(pairs)}


def _categories(truths: Sequence[Truth]) -> dict[str, int]:
    phrases = {normalise(triplet.phrase) for truth in truths for triplet in truth.triplets}
    return {phrase: number for number, phrase in enumerate(sorted(phrases), start=1)}


def _phrased(record: Truth | Prediction | None) -> Iterator[tuple[str, Instance]]:
    for triplet in record.triplets if record is not None else ():
        phrase = normalise(triplet.phrase)
        for instance in triplet.instances:
            yield phrase, instance


def _annotations(
    truth: Truth, categories: Mapping[str, int], unit: str, image: int
) -> Iterator[dict[str, Any]]:
    for phrase, instance in _phrased(truth):
        target = _object(instance, truth, unit)
        if target is None:
            raise ValueError(f"truth {truth.uid!r}: an object of {phrase!r} has no {unit}")
        yield target | _entry(image, categories.get(phrase, _ONE), crowd=0)
    # Crowd regions carry no phrase: they absorb detections of every category.
    for instance in truth.ignore:
        region = _object(instance, truth, unit, boxes_too=True)
        if region is not None:
            for category in categories.values() or (_ONE,):
                yield region | _entry(image, category, crowd=1)


def _entry(image: int, category: int, *, crowd: int) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "iscrowd": crowd}


def _object(
    instance: Instance, truth: Truth, unit: str, *, boxes_too: bool = False
) -> dict[str, Any] | None:
    """Geometry of a COCO object, or None when the instance has none of the unit.

    `boxes_too` lets a filled box stand for a missing mask.
    """
    height, width = truth.height, truth.width
    box = box_of(instance, height, width)
    if unit != "mask":
        return None if box is None else _boxed(instance, box)
    mask = mask_of(instance, height, width)
    if mask is None and boxes_too and box is not None:
        mask = _filled(box, height, width)
    return None if mask is None else _masked(mask)


def _boxed(instance: Instance, box: np.ndarray) -> dict[str, Any]:
    # A box without area stays a false positive; the protocol would divide by its area.
    w, h = np.maximum(box[2:] - box[:2], 1e-6).tolist()
    size = w * h if instance.rle is None else float(_area(instance.rle))
    return {"bbox": [*box[:2].tolist(), w, h], "area": size}


def _masked(mask: np.ndarray) -> dict[str, Any]:
    rle = {"size": list(mask.shape), "counts": encode(mask).decode("ascii")}
    return {"segmentation": rle, "area": float(np.count_nonzero(mask)), "bbox": _around(mask)}


def _around(mask: np.ndarray) -> list[float]:
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return [0.0, 0.0, 0.0, 0.0]
    x, y = float(cols[0]), float(rows[0])
    return [x, y, float(cols[-1]) + 1.0 - x, float(rows[-1]) + 1.0 - y]


def _filled(box: np.ndarray, height: int, width: int) -> np.ndarray:
    x1, y1, x2, y2 = np.rint(box).astype(int)
    mask = np.zeros((height, width), np.bool_)
    mask[y1:y2, x1:x2] = True
    return mask


def _area(rle: Rle) -> int:
    return area(rle["counts"].encode("ascii"), *rle["size"])
