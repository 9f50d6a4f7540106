"""Pixels of a picture to fractions of its padded square and back, unrounded; box algebra.

The model sees a picture centred on a square of side max(width, height). Model coordinates are
fractions of that side. NumPy only, float64 inside; leading axes `...` are free.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_ROWS = 256  # rows of a mask resized at once: bounds memory for large pictures


@dataclass(frozen=True)
class PaddedSquare:
    """A picture of `width` x `height` pixels, centred on a square."""

    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"picture of {self.width} x {self.height} pixels; sides start at 1")

    @property
    def side(self) -> int:
        """Side of the square in picture pixels."""
        return max(self.width, self.height)

    @property
    def offset_x(self) -> int:
        """Columns of padding on the left; an odd extra column goes to the right."""
        return (self.side - self.width) // 2

    @property
    def offset_y(self) -> int:
        """Rows of padding above; an odd extra row goes below."""
        return (self.side - self.height) // 2

    @property
    def _offset(self) -> np.ndarray:
        return np.array([self.offset_x, self.offset_y], np.float64)

    def points_to_model(self, points: np.ndarray) -> np.ndarray:
        """Pixels [..., 2+] to fractions of the side, clamped to the picture.

        Channels after x and y (a visibility, say) pass through.
        """
        result = np.array(points, np.float64)
        inside = np.clip(result[..., :2], 0.0, [self.width, self.height])
        result[..., :2] = (inside + self._offset) / self.side
        return result

    def points_to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Fractions of the side [..., 2+] to pixels, not clipped; further channels pass through."""
        result = np.array(points, np.float64)
        result[..., :2] = result[..., :2] * self.side - self._offset
        return result

    def boxes_to_model(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes x1, y1, x2, y2 [..., 4] in pixels to cx, cy, w, h / side.

        What lies outside the picture is cut off first.
        """
        boxes = clip_boxes(boxes, self.width, self.height)
        low, high = boxes[..., :2], boxes[..., 2:]
        centre = (low + high) / 2.0 + self._offset
        return np.concatenate([centre, high - low], axis=-1) / self.side

    def boxes_to_pixels(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes cx, cy, w, h / side [..., 4] to x1, y1, x2, y2 in pixels, not clipped."""
        boxes = np.asarray(boxes, np.float64) * self.side
        centre, half = boxes[..., :2] - self._offset, boxes[..., 2:] / 2.0
        return np.concatenate([centre - half, centre + half], axis=-1)

    def pixel_box(self, size: int) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 of the real picture when the square is resized to `size` x `size`."""
        x0, x1 = self._visible(self.width, size)
        y0, y1 = self._visible(self.height, size)
        return x0, y0, x1, y1

    def _visible(self, length: int, size: int) -> tuple[int, int]:
        visible = size * length / self.side
        start = int(np.floor((size - visible) / 2.0))
        # A sliver of a picture still shows in one row or column.
        return start, max(int(start + visible), start + 1)

    def mask_to_pixels(self, logits: np.ndarray, threshold_logit: float = 0.0) -> np.ndarray:
        """Mask logits [h, w] on the square to bool[H, W] on the picture.

        Bilinear resize of the logits to the full square (pixel centres, corners not aligned), then
        the crop without padding, then `> threshold_logit`. Only the crop is ever computed.
        """
        mask = np.empty((self.height, self.width), np.bool_)
        for block, strip in self._strips(logits):
            mask[block] = strip > threshold_logit
        return mask

    def map_to_pixels(self, values: np.ndarray) -> np.ndarray:
        """Dense values [h, w] on the square (a depth map) to float32[H, W] on the picture.

        Resized like the logits of a mask; every value lies between its four neighbours.
        """
        result = np.empty((self.height, self.width), np.float32)
        for block, strip in self._strips(values):
            result[block] = strip
        return result

    def _strips(self, values: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """The resized picture, some rows at a time."""
        values = np.asarray(values, np.float64)
        rows = _taps(values.shape[0], self.side, self.offset_y, self.height)
        cols = _taps(values.shape[1], self.side, self.offset_x, self.width)
        for start in range(0, self.height, _ROWS):
            block = slice(start, start + _ROWS)
            strip = _blend(values, [tap[block] for tap in rows], axis=0)
            yield block, _blend(strip, cols, axis=1)


def _taps(source: int, target: int, start: int, count: int) -> list[np.ndarray]:
    """Lower index, upper index and upper weight for targets start..start+count of a resize."""
    centre = (np.arange(start, start + count) + 0.5) * source / target - 0.5
    centre = np.clip(centre, 0.0, source - 1.0)
    low = np.floor(centre).astype(np.int64)
    return [low, np.minimum(low + 1, source - 1), centre - low]


def _blend(values: np.ndarray, taps: list[np.ndarray], axis: int) -> np.ndarray:
    low, high, weight = taps
    weight = np.expand_dims(weight, 1 - axis)
    return values.take(low, axis) * (1.0 - weight) + values.take(high, axis) * weight


def clip_boxes(boxes: np.ndarray, width: float, height: float) -> np.ndarray:
    """Boxes x1, y1, x2, y2 [..., 4] clamped to the rectangle [0, width] x [0, height]."""
    return np.clip(np.asarray(boxes, np.float64), 0.0, [width, height, width, height])


def box_area(boxes: np.ndarray) -> np.ndarray:
    """Areas [...] of boxes x1, y1, x2, y2 [..., 4]; an inverted box has none."""
    boxes = np.asarray(boxes, np.float64)
    return np.clip(boxes[..., 2:] - boxes[..., :2], 0.0, None).prod(axis=-1)


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union [N, M] of boxes x1, y1, x2, y2 `a` [N, 4] and `b` [M, 4].

    Two boxes without area have IoU 0.
    """
    a = np.asarray(a, np.float64).reshape(-1, 4)
    b = np.asarray(b, np.float64).reshape(-1, 4)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.clip(high - low, 0.0, None).prod(axis=-1)
    union = box_area(a)[:, None] + box_area(b)[None, :] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0.0)
