"""Monocular depth: errors in metres, and after a scale or an affine map has been fitted.

Definitions of Eigen et al. (arXiv 1406.2283), per picture, then the mean over pictures. The affine
fit is MiDaS's (arXiv 1907.01341): least squares on inverse depth.
"""

from collections.abc import Sequence

import numpy as np

from refvlm_jax.eval.depth_maps import first_depth, load_depth
from refvlm_jax.eval.record_types import Prediction, Truth
from refvlm_jax.eval.scorers.pairing import Metrics, Predictions, counts, mean, pair

ALIGNED = ("abs_rel", "rmse", "delta1")
"""What is also measured after an alignment, as `median_...` and `affine_...`."""
_MISSING = 0.1
"""A missing map is scored as if everything were at this share of its true distance."""
_LEAST = 1e-6


def score(truths: Sequence[Truth], predictions: Predictions) -> Metrics:
    """Means of `sample` over the pictures, no_depth_rate, n, n_missing.

    Raises:
      ValueError: a truth without a metric depth map, or a map that cannot be read.
    """
    pairs = pair(truths, predictions)
    values = [sample(truth, prediction) for truth, prediction in pairs]
    none = (p is None or first_depth(p) is None for _, p in pairs)
    return {
        **{name: mean(v[name] for v in values) for name in (values[0] if values else ())},
        "no_depth_rate": mean(none),
        **counts(pairs),
    }


def sample(truth: Truth, prediction: Prediction | None) -> Metrics:
    """`errors` of one picture, and those of ALIGNED after each alignment.

    Only pixels with a known true depth count. A missing map is wrong by a factor of ten everywhere,
    aligned or not; so is a relative one (inverse depth up to scale and shift) but for `affine_...`.
    """
    target = first_depth(truth)
    if target is None or target.kind != "metric":
        raise ValueError(f"truth {truth.uid!r} of task {truth.task_id} has no depth in metres")
    true = load_depth(target, truth.width, truth.height).astype(np.float64)
    known = np.isfinite(true) & (true > 0)
    true = true[known]
    if not len(true):
        raise ValueError(f"truth {truth.uid!r} of task {truth.task_id} has no known depth")
    given = first_depth(prediction) if prediction is not None else None
    wrong = _MISSING * true
    found = median = affine = wrong
    if given is not None:
        values = load_depth(given, truth.width, truth.height).astype(np.float64)[known]
        # Holes of a prediction are wrong too.
        hole = ~(np.isfinite(values) & (values > 0))
        values = np.where(hole, _MISSING * true, values)
        if given.kind == "metric":
            found, median = values, values * (np.median(true) / np.median(values))
            affine = affine_aligned(1.0 / values, true)
        else:
            affine = np.where(hole, wrong, affine_aligned(values, true))
    result = errors(found, true)
    for prefix, aligned in (("median", median), ("affine", affine)):
        all_errors = errors(aligned, true)
        result |= {f"{prefix}_{name}": all_errors[name] for name in ALIGNED}
    return result


def errors(found: np.ndarray, true: np.ndarray) -> Metrics:
    """abs_rel, sq_rel, rmse, rmse_log, log10, silog and delta1 to delta3 of positive depths.

    `silog` is 100 times the standard deviation of the log error; `deltaK` the share of pixels whose
    ratio to the truth, either way, is below 1.25 ** K.
    """
    found = np.maximum(found, _LEAST)
    apart, log = found - true, np.log(found) - np.log(true)
    ratio = np.exp(np.abs(log))
    return {
        "abs_rel": float(np.mean(np.abs(apart) / true)),
        "sq_rel": float(np.mean(apart**2 / true)),
        "rmse": float(np.sqrt(np.mean(apart**2))),
        "rmse_log": float(np.sqrt(np.mean(log**2))),
        "log10": float(np.mean(np.abs(log)) / np.log(10.0)),
        "silog": float(100.0 * np.std(log)),
        **{f"delta{k}": float(np.mean(ratio < 1.25**k)) for k in (1, 2, 3)},
    }


def affine_aligned(inverse: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Depth from inverse depth by the scale and shift that fit the true inverse depth best.

    What the fit puts beyond the farthest true depth is brought back to it.
    """
    design = np.stack([inverse, np.ones_like(inverse)], axis=1)
    (scale, shift), *_ = np.linalg.lstsq(design, 1.0 / true, rcond=None)
    return 1.0 / np.maximum(scale * inverse + shift, 1.0 / true.max())
