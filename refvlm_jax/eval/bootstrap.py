"""Bootstrap intervals over pictures: questions about one picture are not independent."""

from collections.abc import Sequence

import numpy as np

_CELLS = 4_000_000  # drawn picture numbers held at once: bounds memory for large test sets


def ratio_interval(
    numerator: Sequence[float],
    denominator: Sequence[float],
    images: Sequence[str],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of sum(numerator) / sum(denominator) when pictures are drawn again.

    With a denominator of ones this is the interval of a mean (accuracy), with unions of pixels that
    of the cumulative IoU. Independent of the order of the samples.

    Args:
      numerator: one value a sample.
      denominator: one value a sample; a resample whose denominators are all 0 has ratio 0.
      images: the picture of every sample.
      resamples: how many times pictures are drawn with replacement.
      level: probability mass between the two bounds.
      seed: of the generator.
    """
    if not len(images):
        return 0.0, 0.0
    parts, wholes = _by_image(numerator, denominator, images)
    ratios = _resampled(parts, wholes, resamples, np.random.default_rng(seed))
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(ratios, [tail, 100.0 - tail])
    return float(low), float(high)


def _by_image(
    numerator: Sequence[float], denominator: Sequence[float], images: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Sums [pictures] of both, pictures in alphabetical order."""
    names, owner = np.unique(np.asarray(images, np.str_), return_inverse=True)
    part, whole = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    order = np.lexsort((whole, part, owner))  # sums must not depend on the order of the samples
    return tuple(  # type: ignore[return-value]
        np.bincount(owner[order], weights=values[order], minlength=len(names))
        for values in (part, whole)
    )


def _resampled(
    parts: np.ndarray, wholes: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Ratios [resamples]."""
    ratios = []
    for start in range(0, resamples, step := max(1, _CELLS // len(parts))):
        drawn = rng.integers(0, len(parts), (min(step, resamples - start), len(parts)))
        part, whole = parts[drawn].sum(axis=1), wholes[drawn].sum(axis=1)
        ratios.append(np.divide(part, whole, out=np.zeros_like(part), where=whole > 0.0))
    return np.concatenate(ratios)
