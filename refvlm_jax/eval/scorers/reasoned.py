"""Answers with grounded reasons: is the answer right, and is what it rests on found?"""

from collections.abc import Sequence

from refvlm_jax.eval.record_types import Truth
from refvlm_jax.eval.scorers import grounded, vqa
from refvlm_jax.eval.scorers.pairing import Metrics, Predictions


def score(truths: Sequence[Truth], predictions: Predictions) -> Metrics:
    """accuracy and soft_accuracy of `vqa`, and every number of `grounded` for boxes."""
    return vqa.score(truths, predictions) | grounded.score(truths, predictions, "box")
