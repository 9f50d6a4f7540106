"""Corpus BLEU-1..4 with the closest reference length, as the COCO caption toolkit computes it."""

import math
from collections import Counter
from collections.abc import Sequence

Tokens = Sequence[str]

# The toolkit's guards against empty counts; they decide what a corpus without any match scores.
_TINY, _SMALL = 1e-15, 1e-9


def bleu(
    captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]], orders: int = 4
) -> list[float]:
    """BLEU-1 to BLEU-`orders` of the whole corpus, 0 to 1."""
    matched, offered = [0] * orders, [0] * orders
    length = closest = 0
    for caption, group in zip(captions, references, strict=True):
        length += len(caption)
        closest += min((abs(len(r) - len(caption)), len(r)) for r in group)[1]
        for n in range(orders):
            counts = _ngrams(caption, n + 1)
            offered[n] += sum(counts.values())
            matched[n] += sum((counts & _most(group, n + 1)).values())
    ratio = (length + _TINY) / (closest + _SMALL)
    brevity = math.exp(1.0 - 1.0 / ratio) if ratio < 1.0 else 1.0
    return [value * brevity for value in _means(matched, offered)]


def _ngrams(tokens: Tokens, n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[k : k + n]) for k in range(len(tokens) - n + 1))


def _most(group: Sequence[Tokens], n: int) -> Counter[tuple[str, ...]]:
    """For every n-gram its highest count in one reference."""
    most: Counter[tuple[str, ...]] = Counter()
    for tokens in group:
        most |= _ngrams(tokens, n)
    return most


def _means(matched: Sequence[int], offered: Sequence[int]) -> list[float]:
    """Geometric means of the first 1, 2, ... precisions."""
    product, means = 1.0, []
    for n, (hits, total) in enumerate(zip(matched, offered, strict=True), start=1):
        product *= (hits + _TINY) / (total + _SMALL)
        means.append(product ** (1.0 / n))
    return means
