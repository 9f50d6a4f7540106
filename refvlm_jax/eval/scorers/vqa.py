"""Visual question answering with short answers."""

from collections.abc import Sequence

from refvlm_jax.eval.record_types import Prediction, Truth
from refvlm_jax.eval.scorers.pairing import Metrics, Predictions, counts, mean, pair
from refvlm_jax.eval.text.vqa_answer import extract, normalise, soft_accuracy


def score(truths: Sequence[Truth], predictions: Predictions) -> Metrics:
    """accuracy (exact match after normalisation), soft_accuracy (ten people), n, n_missing."""
    pairs = pair(truths, predictions)
    return {
        "accuracy": mean(correct(truth, prediction) for truth, prediction in pairs),
        "soft_accuracy": mean(_soft(truth, prediction) for truth, prediction in pairs),
        **counts(pairs),
    }


def correct(truth: Truth, prediction: Prediction | None) -> bool:
    """Whether the answer equals the true one in normal form; an empty answer never does."""
    found = short_answer(prediction.plain) if prediction is not None else ""
    return bool(found) and found == short_answer(truth.answer)


def short_answer(text: str) -> str:
    """The answer in a text, in normal form."""
    return normalise(extract(text))


def _soft(truth: Truth, prediction: Prediction | None) -> float:
    found = short_answer(prediction.plain) if prediction is not None else ""
    return soft_accuracy(found, [short_answer(a) for a in truth.texts]) if found else 0.0
