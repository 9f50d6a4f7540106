"""Captions of whole pictures against all references of the picture.

METEOR is not reported: it needs Java and its paraphrase tables, and no substitute is comparable.
"""

from collections.abc import Sequence

from refvlm_jax.eval.record_types import Prediction, Truth
from refvlm_jax.eval.scorers.pairing import Metrics, Pair, Predictions, counts, mean, pair
from refvlm_jax.eval.text.bleu import bleu
from refvlm_jax.eval.text.cider import cider
from refvlm_jax.eval.text.ptb import tokenize


def score(truths: Sequence[Truth], predictions: Predictions) -> Metrics:
    """cider (CIDEr-D, 0 to 10), bleu4, n_images, n, n_missing.

    Truths that share a picture are one item with all their references; the prediction of the first
    uid answers for it.
    """
    pairs = pair(truths, predictions)
    groups: dict[str, list[Pair]] = {}
    for truth, prediction in pairs:
        groups.setdefault(truth.image, []).append((truth, prediction))
    captions = [_plain(group[0][1]) for group in groups.values()]
    references = [_references(group) for group in groups.values()]
    return text_metrics(captions, references) | {"n_images": len(groups), **counts(pairs)}


def text_metrics(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Metrics:
    """cider and bleu4 of one caption an item against its references."""
    tokens = [tokenize(caption) for caption in captions]
    grouped = [[tokenize(reference) for reference in group] for group in references]
    scores = cider(tokens, grouped)
    return {"cider": mean(scores), "bleu4": bleu(tokens, grouped)[-1] if tokens else 0.0}


def _references(group: Sequence[Pair]) -> list[str]:
    return list(dict.fromkeys(text for truth, _ in group for text in truth.texts))


def _plain(prediction: Prediction | None) -> str:
    return prediction.plain if prediction is not None else ""
