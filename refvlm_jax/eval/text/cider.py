"""CIDEr-D: consensus of a caption with its references (Vedantam et al., CVPR 2015)."""

import math
from collections import Counter
from collections.abc import Sequence

Ngrams = Counter[tuple[str, ...]]
Tokens = Sequence[str]

_ORDERS = 4
_LENGTH_SIGMA = 6.0


def cider(captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """Score of every picture's caption, 0 to 10; the corpus score is their mean.

    Document frequencies come from `references` themselves, so a corpus of one picture scores 0, and
    so does an empty caption.

    Args:
      captions: tokens of one caption a picture.
      references: tokens of one or more references a picture.
    """
    counted = [[_ngrams(tokens) for tokens in group] for group in references]
    documents: Counter[tuple[str, ...]] = Counter()
    for group in counted:
        documents.update({gram for ngrams in group for gram in ngrams})
    log_n = math.log(max(len(references), 1))
    idf = {gram: log_n - math.log(count) for gram, count in documents.items()}
    return [
        _score(_Vectors(_ngrams(caption), idf, log_n), [_Vectors(r, idf, log_n) for r in group])
        for caption, group in zip(captions, counted, strict=True)
    ]


def _ngrams(tokens: Tokens) -> Ngrams:
    return Counter(
        tuple(tokens[start : start + n])
        for n in range(1, _ORDERS + 1)
        for start in range(len(tokens) - n + 1)
    )


class _Vectors:
    """TF-IDF weights of a text by n-gram order, their norms, and its length in bigrams."""

    def __init__(self, ngrams: Ngrams, idf: dict[tuple[str, ...], float], unseen: float):
        self.weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(_ORDERS)]
        for gram, count in ngrams.items():
            self.weights[len(gram) - 1][gram] = count * idf.get(gram, unseen)
        self.norms = [math.sqrt(math.fsum(w * w for w in part.values())) for part in self.weights]
        # The original measures length in bigrams; a test pins it.
        self.length = sum(count for gram, count in ngrams.items() if len(gram) == 2)


def _score(caption: _Vectors, references: Sequence[_Vectors]) -> float:
    total = math.fsum(_similarity(caption, reference) for reference in references)
    return 10.0 * total / max(len(references), 1)


def _similarity(caption: _Vectors, reference: _Vectors) -> float:
    difference = caption.length - reference.length
    penalty = math.exp(-(difference**2) / (2.0 * _LENGTH_SIGMA**2))
    cosines = (_cosine(caption, reference, order) for order in range(_ORDERS))
    return penalty * math.fsum(cosines) / _ORDERS


def _cosine(caption: _Vectors, reference: _Vectors, order: int) -> float:
    norm = caption.norms[order] * reference.norms[order]
    if norm == 0.0:
        return 0.0
    other = reference.weights[order]
    # Clipping keeps a caption from gaining by repeating a rare word.
    shared = (
        min(w, other[gram]) * other[gram]
        for gram, w in caption.weights[order].items()
        if gram in other
    )
    return math.fsum(shared) / norm
