"""Referring comprehension: one expression, one box."""

from collections.abc import Sequence

import numpy as np

from refvlm_jax.eval.masks import clipped_box
from refvlm_jax.eval.record_types import Prediction, Truth, first_box, instances
from refvlm_jax.eval.scorers.pairing import Metrics, Predictions, counts, mean, pair
from refvlm_jax.geometry import box_iou

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def score(truths: Sequence[Truth], predictions: Predictions) -> Metrics:
    """acc50 .. acc90 (IoU strictly above), miou, no_box_rate, multi_box_rate, n, n_missing.

    Only the first box of an answer counts, so naming several never helps.

    Raises:
      ValueError: a truth without a box.
    """
    pairs = pair(truths, predictions)
    ious = [iou(truth, prediction) for truth, prediction in pairs]
    boxes = [_box_count(prediction) for _, prediction in pairs]
    accuracies = {f"acc{round(100 * t)}": mean(v > t for v in ious) for t in THRESHOLDS}
    return accuracies | {
        "miou": mean(ious),
        "no_box_rate": mean(n == 0 for n in boxes),
        "multi_box_rate": mean(n > 1 for n in boxes),
        **counts(pairs),
    }


def iou(truth: Truth, prediction: Prediction | None) -> float:
    """IoU in original pixels, clipped to the picture, of the first box with the true one."""
    target = clipped_box(first_box(truth), truth.height, truth.width)
    if target is None:
        raise ValueError(f"truth {truth.uid!r} of task {truth.task_id} has no box to compare with")
    if prediction is None:
        return 0.0
    found = clipped_box(first_box(prediction), truth.height, truth.width)
    return 0.0 if found is None else float(box_iou(found[None], target[None])[0, 0])


def _box_count(prediction: Prediction | None) -> int:
    if prediction is None:
        return 0
    return sum(i.box is not None and bool(np.isfinite(i.box).all()) for i in instances(prediction))
