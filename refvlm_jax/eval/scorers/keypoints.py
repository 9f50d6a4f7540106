"""Keypoints: average precision over object keypoint similarity (OKS) by the COCO protocol, and PCK.

Figures of one picture are one category whatever their phrase. The area that OKS is relative to is
that of the annotated mask, or of the box where there is none.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from refvlm_jax.config.model import COCO_SIGMAS
from refvlm_jax.eval.record_types import Instance, Prediction, Truth, instances
from refvlm_jax.eval.scorers.coco import average_precision
from refvlm_jax.eval.scorers.pairing import Metrics, Predictions, counts, mean, pair, ratio
from refvlm_jax.rle import area

PCK = (0.05, 0.1, 0.2)
"""Distances from a true joint, as shares of the longer side of its box, that count as correct."""


def score(truths: Sequence[Truth], predictions: Predictions) -> Metrics:
    """The numbers of `coco.KEYPOINT_SUMMARY`, mean oks, pck05, pck10, pck20, n, n_missing.

    For oks and PCK every annotated figure is compared with the predicted one that `matches` gives it;
    figures and joints without one are wrong.

    Raises:
      ValueError: a truth without keypoints, or with another number of them than COCO's 17.
    """
    pairs = pair(truths, predictions)
    images, annotations, detections = [], [], []
    for number, (truth, prediction) in enumerate(pairs, start=1):
        images.append({"id": number, "width": truth.width, "height": truth.height})
        annotations += [_annotation(i, number) for i in figures(truth)]
        annotations += [_annotation(i, number, crowd=i.keypoints is None) for i in truth.ignore]
        for found in _found(prediction):
            flat = _array(found).reshape(-1).tolist()
            names = {"image_id": number, "category_id": 1, "score": found.score}
            detections.append({"keypoints": flat, **names})
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    result = average_precision(images, annotations, detections, "keypoints")
    matched = [(truth, matches(truth, prediction)) for truth, prediction in pairs]
    joints = [correct_joints(pairs) for _, pairs in matched]
    total = sum(n for _, n in joints)
    return {
        **result,
        "oks": mean(value for _, pairs in matched for _, _, value in pairs),
        **{
            pck_name(t): ratio(sum(right[k] for right, _ in joints), total)
            for k, t in enumerate(PCK)
        },
        **counts(pairs),
    }


def pck_name(share: float) -> str:
    """Name of the metric of one distance of PCK."""
    return f"pck{round(100 * share):02d}"


def figures(truth: Truth) -> list[Instance]:
    """The annotated figures; ValueError when there is none or one is not COCO's."""
    found = instances(truth)
    if not found or any(not any(v for *_, v in i.keypoints or ()) for i in found):
        raise ValueError(f"truth {truth.uid!r} of task {truth.task_id} has a target without joints")
    for figure in found:
        if len(figure.keypoints or ()) != len(COCO_SIGMAS):
            raise ValueError(
                f"truth {truth.uid!r}: {len(figure.keypoints or ())} joints; the protocol is "
                f"defined for COCO's {len(COCO_SIGMAS)}"
            )
    return found


def similarity(found: Instance, figure: Instance) -> float:
    """OKS of a predicted figure with an annotated one."""
    points, truth = _array(found), _array(figure)
    if len(points) != len(truth):
        return 0.0
    labelled = truth[:, 2] > 0
    distance = ((points - truth)[labelled, :2] ** 2).sum(-1)
    spread = (2.0 * np.array(COCO_SIGMAS)[labelled]) ** 2
    size = _area(figure) + np.spacing(1)  # as the protocol guards its division
    return float(np.exp(-distance / (2.0 * size * spread)).mean())


def matches(
    truth: Truth, prediction: Prediction | None
) -> list[tuple[Instance, Instance | None, float]]:
    """Every annotated figure with its predicted one (or None) and their OKS.

    The most similar pair of all is taken first, then the most similar of what remains.
    """
    wanted, found = figures(truth), _found(prediction)
    table = np.array([[similarity(f, w) for f in found] for w in wanted]).reshape(len(wanted), -1)
    result: list[tuple[Instance, Instance | None, float]] = [(w, None, 0.0) for w in wanted]
    for _ in range(min(table.shape)):
        row, column = np.unravel_index(int(table.argmax()), table.shape)
        result[row] = (wanted[row], found[column], float(table[row, column]))
        table[row, :] = table[:, column] = -1.0
    return result


def correct_joints(
    matched: Sequence[tuple[Instance, Instance | None, float]],
) -> tuple[list[int], int]:
    """Labelled joints found within each distance of PCK, and how many there are."""
    right, total = [0] * len(PCK), 0
    for figure, found, _ in matched:
        truth = _array(figure)
        labelled = truth[:, 2] > 0
        total += int(labelled.sum())
        if found is None or len(_array(found)) != len(truth):
            continue
        away = np.hypot(*(_array(found) - truth)[labelled, :2].T)
        for k, share in enumerate(PCK):
            right[k] += int((away <= share * _side(figure)).sum())
    return right, total


def box_of(figure: Instance) -> tuple[float, float, float, float]:
    """The annotated box, or the one around the labelled joints."""
    if figure.box is not None:
        return figure.box
    points = _array(figure)
    points = points[points[:, 2] > 0, :2]
    if not len(points):
        return 0.0, 0.0, 0.0, 0.0
    (x1, y1), (x2, y2) = points.min(0).tolist(), points.max(0).tolist()
    return x1, y1, x2, y2


def _found(prediction: Prediction | None) -> list[Instance]:
    """Predicted figures that have joints at all, the most certain first."""
    given: Iterator[Instance] = iter(instances(prediction)) if prediction is not None else iter(())
    kept = [i for i in given if i.keypoints and np.isfinite(_array(i)).all()]
    kept = [i for i in kept if len(i.keypoints or ()) == len(COCO_SIGMAS)]
    return sorted(kept, key=lambda i: -i.score)


def _array(instance: Instance) -> np.ndarray:
    return np.array(instance.keypoints, np.float64).reshape(-1, 3)


def _area(figure: Instance) -> float:
    if figure.rle is not None:
        height, width = figure.rle["size"]
        return float(area(figure.rle["counts"].encode("ascii"), height, width))
    x1, y1, x2, y2 = box_of(figure)
    return (x2 - x1) * (y2 - y1)


def _side(figure: Instance) -> float:
    x1, y1, x2, y2 = box_of(figure)
    return max(x2 - x1, y2 - y1)


def _annotation(figure: Instance, image: int, *, crowd: bool = False) -> dict[str, Any]:
    """A COCO object; one without a labelled joint is ignored by the protocol."""
    points = _array(figure) if figure.keypoints else np.zeros((len(COCO_SIGMAS), 3))
    x1, y1, x2, y2 = box_of(figure)
    return {
        "image_id": image,
        "category_id": 1,
        "keypoints": points.reshape(-1).tolist(),
        "num_keypoints": int((points[:, 2] > 0).sum()),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": _area(figure),
        "iscrowd": int(crowd),
    }
