"""Truths beside their predictions, and the summaries all scorers share."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from refvlm_jax.eval.record_types import Prediction, Truth

Predictions = Mapping[str, Prediction]
"""Predictions by uid."""
Pair = tuple[Truth, Prediction | None]
Metrics = dict[str, float]


def pair(truths: Sequence[Truth], predictions: Predictions) -> list[Pair]:
    """Every truth with its prediction, None where that is missing, in order of the uid.

    The order makes every score independent of the order of the records.

    Raises:
      ValueError: a uid occurs twice, or a prediction belongs to another task or picture size.
    """
    pairs = [(t, predictions.get(t.uid)) for t in sorted(truths, key=lambda t: t.uid)]
    for (first, _), (second, _) in itertools.pairwise(pairs):
        if first.uid == second.uid:
            raise ValueError(f"truth {first.uid!r} occurs twice; remove one of the records")
    for truth, prediction in pairs:
        if prediction is not None:
            _check(truth, prediction)
    return pairs


def _check(truth: Truth, prediction: Prediction) -> None:
    for field in ("task_id", "width", "height"):
        expected, have = getattr(truth, field), getattr(prediction, field)
        if expected != have:
            raise ValueError(
                f"prediction {truth.uid!r}: {field} is {have!r}, the truth says {expected!r}; "
                "the two files do not belong together"
            )


def counts(pairs: Sequence[Pair]) -> Metrics:
    """How many truths there are, and how many of them have no prediction."""
    return {"n": len(pairs), "n_missing": sum(prediction is None for _, prediction in pairs)}


def mean(values: Iterable[float]) -> float:
    """Mean, exactly rounded (so independent of the order); 0 for no values."""
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else 0.0


def ratio(part: float, whole: float) -> float:
    """`part / whole`, 0 when there is nothing to divide by."""
    return part / whole if whole else 0.0
