"""Grounded conversation generation: captions whose phrases own boxes or masks.

The phrase similarity is token F1 (see `eval.text.phrase`), since no text encoder is at hand; so
`recall` is not comparable with numbers that use sentence embeddings. `recall_exact` asks for equal
phrases, which tells "red circle" from "blue circle".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refvlm_jax.eval.masks import iou_matrix
from refvlm_jax.eval.record_types import Instance, Prediction, Truth
from refvlm_jax.eval.scorers import detection
from refvlm_jax.eval.scorers.caption import text_metrics
from refvlm_jax.eval.scorers.pairing import Metrics, Predictions, counts, mean, pair, ratio
from refvlm_jax.eval.text.phrase import exact, token_f1

THRESHOLD = 0.5
"""Least IoU and least similarity of a match."""


@dataclass(frozen=True)
class Overlaps:
    """How the predicted objects (rows) of a sample relate to the annotated ones (columns)."""

    iou: np.ndarray
    similarity: np.ndarray
    """Token F1 of the phrases."""
    same: np.ndarray
    """1 where the phrases are equal."""


def score(truths: Sequence[Truth], predictions: Predictions, unit: str) -> Metrics:
    """recall, recall_exact, recall_hungarian, miou, ap50, cider, bleu4, n, n_missing.

    `ap50` is class-agnostic, as the benchmark defines it.

    Args:
      truths: captions with phrases and their objects.
      predictions: by uid.
      unit: box or mask.
    """
    pairs = pair(truths, predictions)
    found = [overlaps(truth, prediction, unit) for truth, prediction in pairs]
    total = sum(o.iou.shape[1] for o in found)
    captions = [prediction.plain if prediction else "" for _, prediction in pairs]
    precision = detection.score(truths, predictions, unit, by_phrase=False)
    return {
        "recall": ratio(sum(greedy_matches(o.iou, o.similarity) for o in found), total),
        "recall_exact": ratio(sum(most_matches(o.iou, o.same) for o in found), total),
        "recall_hungarian": ratio(sum(most_matches(o.iou, o.similarity) for o in found), total),
        "miou": mean(greedy_miou(o.iou) for o in found if o.iou.shape[1]),
        "ap50": precision["ap50"],
        **text_metrics(captions, [truth.texts for truth, _ in pairs]),
        **counts(pairs),
    }


def overlaps(truth: Truth, prediction: Prediction | None, unit: str) -> Overlaps:
    """IoU and phrase similarity [found, truth] of all objects of a sample."""
    found, targets = _phrased(prediction), _phrased(truth)
    iou = iou_matrix(
        [i for _, i in found], [i for _, i in targets], unit, truth.height, truth.width
    )
    similarity, same = np.zeros_like(iou), np.zeros_like(iou)
    for row, (phrase, _) in enumerate(found):
        for column, (target, _) in enumerate(targets):
            similarity[row, column] = token_f1(phrase, target)
            same[row, column] = exact(phrase, target)
    return Overlaps(iou, similarity, same)


def _phrased(record: Truth | Prediction | None) -> list[tuple[str, Instance]]:
    triplets = record.triplets if record is not None else ()
    return [(triplet.phrase, i) for triplet in triplets for i in triplet.instances]


def greedy_miou(iou: np.ndarray) -> float:
    """Mean IoU of the pairs taken in order of falling IoU while it is positive; 0 without any."""
    return mean(value for _, _, value in _greedy(iou))


def greedy_matches(iou: np.ndarray, similarity: np.ndarray) -> int:
    """Pairs taken in order of falling IoU until one falls below either threshold.

    One well placed object with a wrong phrase hides all less well placed ones: the benchmark's own
    rule, kept for comparison. `most_matches` has no such effect.
    """
    matches = 0
    for row, column, value in _greedy(iou):
        if value < THRESHOLD or similarity[row, column] < THRESHOLD:
            break
        matches += 1
    return matches


def _greedy(iou: np.ndarray) -> list[tuple[int, int, float]]:
    left, taken = iou.copy(), []
    while left.size and left.max() > 0.0:
        row, column = (int(k) for k in np.unravel_index(left.argmax(), left.shape))
        taken.append((row, column, float(left[row, column])))
        left[row, :] = left[:, column] = 0.0
    return taken


def most_matches(iou: np.ndarray, similarity: np.ndarray) -> int:
    """Size of the largest one-to-one matching of pairs above both thresholds."""
    allowed = (iou >= THRESHOLD) & (similarity >= THRESHOLD)
    owner: dict[int, int] = {}  # column -> row

    def place(row: int, seen: set[int]) -> bool:
        for column in np.flatnonzero(allowed[row]).tolist():
            if column in seen:
                continue
            seen.add(column)
            if column not in owner or place(owner[column], seen):
                owner[column] = row
                return True
        return False

    return sum(place(row, set()) for row in range(len(allowed)))
