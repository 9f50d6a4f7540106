"""How every task of VT-Instruct is scored: its metrics, its headline, its terms for intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from refvlm_jax.eval.record_types import Prediction, Truth
from refvlm_jax.eval.scorers import (
    caption,
    depth,
    detection,
    grounded,
    keypoints,
    reasoned,
    rec,
    region_caption,
    res,
    vqa,
)
from refvlm_jax.eval.scorers.pairing import Metrics, Predictions
from refvlm_jax.trp.format import check_format

Terms = Mapping[str, tuple[float, float]]
"""Metric -> numerator and denominator that one sample adds."""


@dataclass(frozen=True)
class TaskScorer:
    """Scoring of one task."""

    title: str
    headline: str
    """The metric the task is judged by."""
    unit: str
    """What the answers are decoded to: box, mask, keypoint, depth, or empty for text."""
    score: Callable[[Sequence[Truth], Predictions], Metrics]
    terms: Callable[[Truth, Prediction | None], Terms] = lambda truth, prediction: {}
    """For metrics that are ratios of sums over samples."""


def format_terms(truth: Truth, prediction: Prediction | None) -> Terms:
    """Terms of format_valid."""
    raw = prediction.raw if prediction else ""
    valid = bool(raw.strip()) and check_format(raw, truth.style).valid
    return {"format_valid": (float(valid), 1.0)}


def _rec_terms(truth: Truth, prediction: Prediction | None) -> Terms:
    iou = rec.iou(truth, prediction)
    return {f"acc{round(100 * t)}": (float(iou > t), 1.0) for t in rec.THRESHOLDS} | {
        "miou": (iou, 1.0)
    }


def _res_terms(truth: Truth, prediction: Prediction | None) -> Terms:
    overlap = res.overlap(truth, prediction)
    iou = res.sample_ious([overlap], [prediction is not None])[0]
    return {"ciou": overlap, "giou": (iou, 1.0)}


def _vqa_terms(truth: Truth, prediction: Prediction | None) -> Terms:
    return {"accuracy": (float(vqa.correct(truth, prediction)), 1.0)}


def _region_terms(truth: Truth, prediction: Prediction | None) -> Terms:
    return {"accuracy": (float(region_caption.correct(truth, prediction)), 1.0)}


def _keypoint_terms(truth: Truth, prediction: Prediction | None) -> Terms:
    matched = keypoints.matches(truth, prediction)
    right, total = keypoints.correct_joints(matched)
    shares = {keypoints.pck_name(t): (right[k], total) for k, t in enumerate(keypoints.PCK)}
    return {"oks": (sum(value for _, _, value in matched), len(matched)), **shares}


def _depth_terms(truth: Truth, prediction: Prediction | None) -> Terms:
    return {name: (value, 1.0) for name, value in depth.sample(truth, prediction).items()}


def _box(title: str) -> TaskScorer:
    return TaskScorer(title, "acc50", "box", rec.score, _rec_terms)


def _mask(title: str) -> TaskScorer:
    return TaskScorer(title, "ciou", "mask", res.score, _res_terms)


def _answer(title: str) -> TaskScorer:
    return TaskScorer(title, "accuracy", "", vqa.score, _vqa_terms)


def _caption(title: str) -> TaskScorer:
    return TaskScorer(title, "cider", "", caption.score)


def _dialogue(title: str) -> TaskScorer:
    return TaskScorer(title, "cider", "", region_caption.score, _region_terms)


def _reasoned(title: str) -> TaskScorer:
    return TaskScorer(title, "accuracy", "box", reasoned.score, _vqa_terms)


def _region(title: str) -> TaskScorer:
    return TaskScorer(title, "accuracy", "", region_caption.score, _region_terms)


def _detection(title: str, unit: str) -> TaskScorer:
    return TaskScorer(title, "ap50", unit, partial(detection.score, unit=unit))


def _grounded(title: str, unit: str) -> TaskScorer:
    return TaskScorer(title, "recall", unit, partial(grounded.score, unit=unit))


def _keypoints(title: str) -> TaskScorer:
    return TaskScorer(title, "ap", "keypoint", keypoints.score, _keypoint_terms)


TASKS: dict[str, TaskScorer] = {
    "T01": _caption("Caption"),
    "T02": _caption("Detailed caption"),
    "T03": _answer("VQA"),
    "T04": _answer("VQA with reasons"),
    "T05": _dialogue("Dialogue"),
    "T06": _region("Region caption (box)"),
    "T07": _region("Region caption (mask)"),
    "T08": _region("Region caption (point)"),
    "T09": _region("Region caption (scribble)"),
    "T10": _answer("Region question (box)"),
    "T11": _answer("Region question (point)"),
    "T12": _dialogue("Dialogue about regions"),
    "T13": _detection("Detection", "box"),
    "T14": _detection("Segmentation", "mask"),
    "T15": _detection("Detection by class", "box"),
    "T16": _detection("Segmentation by class", "mask"),
    "T17": _box("Referring comprehension"),
    "T18": _mask("Referring segmentation"),
    "T19": _grounded("Grounded caption (box)", "box"),
    "T20": _grounded("Grounded caption (mask)", "mask"),
    "T21": _box("Region to box"),
    "T22": _mask("Region to mask"),
    "T23": _keypoints("Keypoints of everyone"),
    "T24": _keypoints("Region to keypoints"),
    "T25": TaskScorer("Depth", "delta1", "depth", depth.score, _depth_terms),
    "X1": _reasoned("Reasons with boxes"),
    # No decoder gives points: what they train is the text, which is scored.
    "X2": _answer("Reasons with points"),
    "X3": _box("Choice among boxes"),
    "X4": _reasoned("Answer, then reason"),
}
"""Scorers by task id, of the first turn; unknown tasks are judged by their format alone."""
