"""Referring segmentation: one expression, one mask, at the native resolution of the picture."""

from collections.abc import Sequence

import numpy as np

from refvlm_jax.eval.masks import load_mask, union_mask
from refvlm_jax.eval.record_types import Prediction, Truth, first_mask, instances
from refvlm_jax.eval.scorers.pairing import Metrics, Predictions, counts, mean, pair, ratio

THRESHOLDS = (0.5, 0.7, 0.9)


def score(truths: Sequence[Truth], predictions: Predictions) -> Metrics:
    """ciou, giou, p50, p70, p90 (share of samples with IoU above), no_mask_rate, n, n_missing.

    Raises:
      ValueError: a truth without a mask.
    """
    pairs = pair(truths, predictions)
    overlaps = [overlap(truth, prediction) for truth, prediction in pairs]
    answered = [prediction is not None for _, prediction in pairs]
    ciou, giou = ciou_giou(overlaps, answered)
    ious = sample_ious(overlaps, answered)
    return {
        "ciou": ciou,
        "giou": giou,
        **{f"p{round(100 * t)}": mean(v > t for v in ious) for t in THRESHOLDS},
        "no_mask_rate": mean(p is None or first_mask(p) is None for _, p in pairs),
        **counts(pairs),
    }


def overlap(truth: Truth, prediction: Prediction | None) -> tuple[int, int]:
    """Pixels of intersection and union of the first mask with the true region.

    Without a mask the intersection is empty and the union is the truth. A truth with several masks
    (an expression for a group) means their union.
    """
    rles = [i.rle for i in instances(truth) if i.rle is not None]
    if truth.triplets and not rles:
        raise ValueError(f"truth {truth.uid!r} of task {truth.task_id} has no mask to compare with")
    target = union_mask(rles, truth.height, truth.width)
    rle = first_mask(prediction) if prediction is not None else None
    if rle is None:
        return 0, int(np.count_nonzero(target))
    found = load_mask(rle, truth.height, truth.width)
    return int(np.count_nonzero(found & target)), int(np.count_nonzero(found | target))


def sample_ious(overlaps: Sequence[tuple[int, int]], answered: Sequence[bool]) -> list[float]:
    """IoU of every sample; an empty union is 1 if the question was answered at all."""
    return [
        inter / union if union else float(given)
        for (inter, union), given in zip(overlaps, answered, strict=True)
    ]


def ciou_giou(overlaps: Sequence[tuple[int, int]], answered: Sequence[bool]) -> tuple[float, float]:
    """Cumulative IoU (sum of intersections / sum of unions) and mean IoU over the samples.

    Where every union is empty the cumulative IoU has no meaning and equals the mean.
    """
    giou = mean(sample_ious(overlaps, answered))
    union = sum(u for _, u in overlaps)
    return (ratio(sum(i for i, _ in overlaps), union) if union else giou), giou
