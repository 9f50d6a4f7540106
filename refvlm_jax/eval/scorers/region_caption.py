"""Captions of regions: every question is an item with its own references."""

from collections.abc import Sequence

from refvlm_jax.eval.record_types import Prediction, Truth
from refvlm_jax.eval.scorers.caption import text_metrics
from refvlm_jax.eval.scorers.pairing import Metrics, Predictions, counts, mean, pair
from refvlm_jax.eval.text.phrase import exact


def score(truths: Sequence[Truth], predictions: Predictions) -> Metrics:
    """accuracy (exact match with any reference), cider, bleu4, n, n_missing."""
    pairs = pair(truths, predictions)
    captions = [prediction.plain if prediction else "" for _, prediction in pairs]
    return {
        "accuracy": mean(correct(truth, prediction) for truth, prediction in pairs),
        **text_metrics(captions, [truth.texts for truth, _ in pairs]),
        **counts(pairs),
    }


def correct(truth: Truth, prediction: Prediction | None) -> bool:
    """Whether the words are those of a reference, apart from case, articles and punctuation."""
    return prediction is not None and any(exact(prediction.plain, text) for text in truth.texts)
