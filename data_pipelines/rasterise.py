"""Regions as {0, 1} masks on the padded square, at the resolution of training.

A cell is set when the region covers at least half of it. If no cell is, the threshold sinks to half
of the largest coverage, so that thin strokes and small objects survive the shrinking.
"""

import numpy as np

from data_pipelines.records import Mask, PromptKind, Region
from refvlm_jax import rle
from refvlm_jax.geometry import PaddedSquare, clip_boxes

POINT_RADIUS = 10 / 1024  # of the padded side
_FAINT = 1 / 8  # of a cell: less would be drawn at least eight times too large


def target_mask(mask: Mask, width: int, height: int, size: int) -> np.ndarray:
    """uint8[size, size] of a mask on a picture of `width` x `height` pixels.

    The mask's own grid may be coarser or finer than the picture. Empty only for an empty mask.
    """
    return _threshold(_mask_coverage(mask, PaddedSquare(width, height), size))


def vanishes(mask: Mask, width: int, height: int, size: int) -> bool:
    """Whether a mask covers so little of every cell that the grid would show a blob in its place."""
    box = rle.tight_box(mask.counts, mask.h, mask.w)
    if box is None:
        return True
    # The mean coverage of the cells it can touch is a lower bound that spares most masks the rest.
    side = max(mask.w, mask.h)
    touched = [(b - a) * size / side + 2 for a, b in ((box[0], box[2]), (box[1], box[3]))]
    cells = rle.area(mask.counts, mask.h, mask.w) * (size / side) ** 2
    if cells >= _FAINT * touched[0] * touched[1]:
        return False
    return bool(_mask_coverage(mask, PaddedSquare(width, height), size).max() < _FAINT)


def prompt_mask(region: Region, kind: PromptKind, width: int, height: int, size: int) -> np.ndarray:
    """uint8[size, size] of a region shown as a prompt; never empty.

    A point is a disc of 10/1024 of the padded side or one cell, whichever is larger, around the
    region's point, else around a pixel inside its mask, else around the centre of its box. A box is
    filled. A scribble and a mask are the region's mask.

    Raises:
      ValueError: the region has no payload of that kind, or it covers nothing of the picture.
    """
    square = PaddedSquare(width, height)
    if kind is PromptKind.POINT:
        return _disc(square.points_to_model(_point(region, square)), size)
    if kind is PromptKind.BOX:
        coverage = _box_coverage(_box(region, square), square, size)
    elif region.mask is not None:
        coverage = _mask_coverage(region.mask, square, size)
    else:
        raise ValueError(f"region {region.category!r} has no mask for a {kind.name} prompt")
    if not coverage.any():
        raise ValueError(f"{kind.name} prompt of region {region.category!r} covers no pixel")
    return _threshold(coverage)


def _threshold(coverage: np.ndarray) -> np.ndarray:
    """Cells at least half covered, or at least half as much as the best one; uint8."""
    most = coverage.max()
    if most <= 0.0:
        return np.zeros(coverage.shape, np.uint8)
    # The tolerance keeps exact halves in despite rounding of the cell edges.
    level = 0.5 if most >= 0.5 - 1e-9 else most / 2.0
    return (coverage >= level - 1e-9).astype(np.uint8)


def _mask_coverage(mask: Mask, square: PaddedSquare, size: int) -> np.ndarray:
    """float64[size, size]: the covered fraction of every cell."""
    box = rle.tight_box(mask.counts, mask.h, mask.w)
    if box is None:
        return np.zeros((size, size))
    x1, y1, x2, y2 = box
    inside = rle.decode(mask.counts, mask.h, mask.w)[y1:y2, x1:x2]
    scale_x, scale_y = mask.w / square.width, mask.h / square.height
    cols = (cell_edges(square.side, size) - square.offset_x) * scale_x - x1
    rows = (cell_edges(square.side, size) - square.offset_y) * scale_y - y1
    cell = (square.side / size) ** 2 * scale_x * scale_y
    # Most masks meet few of the cells.
    met_y, met_x = _met(rows, y2 - y1), _met(cols, x2 - x1)
    sums = cell_sums(inside, rows[met_y.start : met_y.stop + 1])
    coverage = np.zeros((size, size))
    coverage[met_y, met_x] = cell_sums(sums.T, cols[met_x.start : met_x.stop + 1]).T / cell
    return coverage


def _met(edges: np.ndarray, length: int) -> slice:
    """The cells between rising `edges` that meet [0, length]."""
    first = max(0, int(np.searchsorted(edges, 0.0, "right")) - 1)
    stop = min(len(edges) - 1, int(np.searchsorted(edges, length, "left")))
    return slice(min(first, stop), stop)


def cell_edges(side: int, size: int) -> np.ndarray:
    """Positions of the size + 1 cell edges in picture pixels of the square."""
    return np.arange(size + 1) * (side / size)


def cell_sums(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Integrals [n, ...] of pixel rows `values` [m, ...] between n + 1 fractional `edges`."""
    edges = np.clip(edges, 0.0, len(values))
    dtype = np.int32 if values.dtype.kind in "ui" else np.float64
    total = np.zeros((len(values) + 1, *values.shape[1:]), dtype)
    np.cumsum(values, axis=0, out=total[1:])
    low = np.minimum(np.floor(edges).astype(np.int64), len(values) - 1)
    part = (edges - low)[:, None] * values[low]
    return np.diff(total[low] + part, axis=0)


def _box_coverage(box: np.ndarray, square: PaddedSquare, size: int) -> np.ndarray:
    x1, y1, x2, y2 = box
    edges = cell_edges(square.side, size)
    cols = np.diff(np.clip(edges, x1 + square.offset_x, x2 + square.offset_x))
    rows = np.diff(np.clip(edges, y1 + square.offset_y, y2 + square.offset_y))
    return np.outer(rows, cols) / (square.side / size) ** 2


def _box(region: Region, square: PaddedSquare) -> np.ndarray:
    if region.box is not None:
        return clip_boxes(np.array(region.box), square.width, square.height)
    if region.mask is not None:
        box = rle.tight_box(region.mask.counts, region.mask.h, region.mask.w)
        if box is not None:
            return np.array(box) * np.tile(_pixel_size(region.mask, square), 2)
    raise ValueError(f"region {region.category!r} has neither box nor mask for a BOX prompt")


def _point(region: Region, square: PaddedSquare) -> np.ndarray:
    if region.point is not None:
        return np.array(region.point)
    if region.mask is not None:
        return _inner_point(region.mask) * _pixel_size(region.mask, square)
    if region.box is not None:
        x1, y1, x2, y2 = region.box
        return np.array([(x1 + x2) / 2.0, (y1 + y2) / 2.0])
    raise ValueError(f"region {region.category!r} has no point, mask or box for a POINT prompt")


def _pixel_size(mask: Mask, square: PaddedSquare) -> np.ndarray:
    """Picture pixels a mask pixel, x and y."""
    return np.array([square.width / mask.w, square.height / mask.h])


def _inner_point(mask: Mask) -> np.ndarray:
    """x, y in mask pixels: the centre of the set pixel nearest to the centroid."""
    ys, xs = np.nonzero(rle.decode(mask.counts, mask.h, mask.w))
    if not len(xs):
        raise ValueError("the mask of a POINT prompt is empty")
    nearest = np.argmin((xs - xs.mean()) ** 2 + (ys - ys.mean()) ** 2)
    return np.array([xs[nearest] + 0.5, ys[nearest] + 0.5])


def _disc(centre: np.ndarray, size: int) -> np.ndarray:
    """uint8[size, size]: cells whose centre lies within the radius of a point in fractions."""
    # One cell is the least radius: the centre of the cell the point lies in is nearer than that.
    radius = max(POINT_RADIUS, 1.0 / size)
    grid = (np.arange(size) + 0.5) / size
    squared = (grid[None, :] - centre[0]) ** 2 + (grid[:, None] - centre[1]) ** 2
    return (squared <= radius**2).astype(np.uint8)
