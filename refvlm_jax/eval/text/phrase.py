"""When two phrases mean the same object: exact match and token F1 after normalisation.

No text encoder is available offline, so the similarity of grounded captions is the F1 of their
words; numbers obtained with sentence embeddings are not comparable.
"""

from collections import Counter

from refvlm_jax.eval.text.ptb import tokenize

_ARTICLES = frozenset(("a", "an", "the"))


def normalise(phrase: str) -> str:
    """Lower-case words without punctuation and articles, one blank between them."""
    return " ".join(_words(phrase))


def token_f1(a: str, b: str) -> float:
    """F1 of the words two phrases share, with multiplicity; 0 to 1, two empty ones score 0."""
    first, second = Counter(_words(a)), Counter(_words(b))
    total = sum(first.values()) + sum(second.values())
    return 2.0 * sum((first & second).values()) / total if total else 0.0


def exact(a: str, b: str) -> float:
    """1 when two phrases are the same after normalisation and not empty."""
    first = normalise(a)
    return float(bool(first) and first == normalise(b))


def _words(phrase: str) -> list[str]:
    words = tokenize(phrase)
    return [word for word in words if word not in _ARTICLES] or words
