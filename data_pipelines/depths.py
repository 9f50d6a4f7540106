"""Depth maps of records: reading, checking, and targets on the padded square."""

from pathlib import Path

import numpy as np

from data_pipelines.images import ImageError
from data_pipelines.rasterise import cell_edges, cell_sums
from data_pipelines.records import Depth, MediaRef
from refvlm_jax import depth_png
from refvlm_jax.geometry import PaddedSquare

FARTHEST = 1000.0
"""Metres beyond which a metric map is taken for one with a wrong scale."""
_LEAST_KNOWN = 0.01
_NEAREST_RELATIVE = 1 / 16


def load_depth(depth: Depth, image: MediaRef, root: Path) -> np.ndarray:
    """float32[H, W] of a record's depth, NaN where it is unknown.

    Raises:
      ImageError: missing, damaged, or not of the picture's size.
    """
    samples = load_samples(depth, image, root)
    values = samples * depth.scale + depth.offset
    return np.where(samples == depth.invalid, np.nan, values).astype(np.float32)


def load_samples(depth: Depth, image: MediaRef, root: Path) -> np.ndarray:
    """int64[H, W] of a record's depth as it is stored; raises ImageError as `load_depth` does."""
    data, name = depth.data, depth.path or f"depth of {image.path}"
    try:
        if data is None:
            data = (Path(root) / depth.path).read_bytes()
        return depth_png.decode_samples(data, image.width, image.height)
    except OSError as error:
        raise ImageError(
            f"{name}: depth map cannot be read ({error.strerror}); check the image root and the path"
        ) from error
    except ValueError as error:
        raise ImageError(f"{name}: {error}; fetch the file again or drop the record") from error


def depth_problem(depth: Depth, image: MediaRef, root: Path) -> str | None:
    """Why a depth map cannot be learned from, or None (rule V09, the part that needs the file)."""
    try:
        values = load_depth(depth, image, root)
    except ImageError as error:
        return str(error)
    known = np.isfinite(values)
    if known.mean() < _LEAST_KNOWN:
        return f"{depth.path}: depth is known in {known.mean():.2%} of the pixels; drop the record"
    low, high = float(values[known].min()), float(values[known].max())
    if depth.kind == "metric" and not 0.0 < low <= high <= FARTHEST:
        return (
            f"{depth.path}: depth from {low:.3g} to {high:.3g} m; expected (0, {FARTHEST:.0f}], "
            "check the scale"
        )
    return None


def depth_target(values: np.ndarray, size: int, *, relative: bool = False) -> np.ndarray:
    """float32[size, size] on the padded square, 0 where nothing is known.

    A cell takes the pixel under its centre, which keeps edges sharp; where that is unknown the mean
    of its known pixels, so that sparse maps lose no point. Relative depth, which means the same
    after any scale and shift, is brought into [1/16, 1].
    """
    height, width = values.shape
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0).astype(np.float64)
    if relative and known.any():
        low, high = filled[known].min(), filled[known].max()
        share = (filled - low) / max(high - low, 1e-12)
        filled = np.where(known, _NEAREST_RELATIVE + (1 - _NEAREST_RELATIVE) * share, 0.0)
    square = PaddedSquare(width, height)
    rows, cols = (cell_edges(square.side, size) - o for o in (square.offset_y, square.offset_x))
    weight, total = (
        cell_sums(cell_sums(v, rows).T, cols).T for v in (known.astype(np.float64), filled)
    )
    # A quarter of a pixel (or of a smaller cell): less is a sliver at the border.
    least = 0.25 * min(1.0, (square.side / size) ** 2)
    mean = np.where(weight >= least, total / np.maximum(weight, least), 0.0)
    y, x = (np.floor((edges[:-1] + edges[1:]) / 2).astype(np.int64) for edges in (rows, cols))
    inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))
    place = (np.clip(y, 0, height - 1)[:, None], np.clip(x, 0, width - 1)[None, :])
    return np.where(inside & known[place], filled[place], mean).astype(np.float32)
