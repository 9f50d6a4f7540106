"""Was this one answer right? What a reader of the report sees on its card."""

from dataclasses import dataclass

import numpy as np

from refvlm_jax.eval.record_types import Prediction, Truth, instances
from refvlm_jax.eval.scorers import depth, keypoints, rec, region_caption, res, vqa
from refvlm_jax.eval.scorers.grounded import greedy_miou, most_matches, overlaps
from refvlm_jax.eval.tasks import TASKS

_DEPTH_ERROR = 0.1
"""Mean relative error below which a depth map counts as right."""


@dataclass(frozen=True)
class Judgement:
    """The verdict on one answer."""

    correct: bool
    badge: str
    """A measure in a few characters, for example `IoU 0.71`."""


def judge(truth: Truth, prediction: Prediction | None) -> Judgement:
    """The verdict by the rules of the task.

    One box or mask: IoU above 0.5. Short answers and captions: exact match in normal form. Several
    objects: every one found with IoU of at least 0.5 and its own phrase, and nothing besides. Figures:
    every one found with an OKS of at least 0.5, and nothing besides. Depth: wrong by less than a tenth
    on average.
    """
    scorer = TASKS.get(truth.task_id)
    if scorer is not None and scorer.score is rec.score:
        return _by_iou(rec.iou(truth, prediction))
    if scorer is not None and scorer.score is res.score:
        overlap = res.overlap(truth, prediction)
        return _by_iou(res.sample_ious([overlap], [prediction is not None])[0])
    if scorer is not None and scorer.score is vqa.score:
        return _by_text(vqa.correct(truth, prediction))
    if scorer is not None and scorer.score is keypoints.score:
        return _by_figures(truth, prediction)
    if scorer is not None and scorer.score is depth.score:
        error = depth.sample(truth, prediction)["abs_rel"]
        return Judgement(error < _DEPTH_ERROR, f"AbsRel {error:.2f}")
    if scorer is not None and scorer.unit:
        return _by_objects(truth, prediction, scorer.unit)
    return _by_text(region_caption.correct(truth, prediction))


def _by_iou(iou: float) -> Judgement:
    return Judgement(iou > rec.THRESHOLDS[0], f"IoU {iou:.2f}")


def _by_figures(truth: Truth, prediction: Prediction | None) -> Judgement:
    matched = keypoints.matches(truth, prediction)
    values = [value for _, _, value in matched]
    given = len(instances(prediction)) if prediction is not None else 0
    hits = sum(value >= rec.THRESHOLDS[0] for value in values)
    badge = f"{hits} of {len(values)} found, OKS {sum(values) / len(values):.2f}"
    return Judgement(hits == len(values) == given, badge)


def _by_text(correct: bool) -> Judgement:
    return Judgement(correct, "exact match" if correct else "differs")


def _by_objects(truth: Truth, prediction: Prediction | None, unit: str) -> Judgement:
    wanted = len(instances(truth))
    given = len(instances(prediction)) if prediction is not None else 0
    found = overlaps(truth, prediction, unit)
    hits = most_matches(found.iou, found.same)
    badge = f"{hits} of {wanted} found"
    if given > hits:
        badge += f", {given - hits} wrong"
    if np.any(found.iou):
        badge += f", mIoU {greedy_miou(found.iou):.2f}"
    return Judgement(hits == wanted == given, badge)
