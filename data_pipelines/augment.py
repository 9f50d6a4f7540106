"""Augmentation of a row: flip, zoom and colour, the same for a picture and all that is said about it.

A change is drawn from the row's generator and so from (seed, row) alone. It touches the picture and the
geometry of every region before anything is rendered: boxes, masks, points, keypoints, depth, prompts
and coordinates written as text follow. Where words would become wrong, it is left out
(`augment_guards`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from data_pipelines.augment_guards import allowed
from data_pipelines.depths import load_samples
from data_pipelines.images import MIN_SIDE, PAD_COLOUR, load_image, to_square
from data_pipelines.records import Depth, Dialog, Mask, MediaRef, Region
from refvlm_jax import depth_png, rle
from refvlm_jax.config.schema import AugmentConfig

MIRRORED: dict[int, tuple[tuple[int, int], ...]] = {
    17: tuple((k, k + 1) for k in range(1, 17, 2)),
}
"""Left and right joints that change places, by number of joints (COCO's skeleton)."""


@dataclass(frozen=True, kw_only=True)
class Colour:
    """Factors of 1 and a hue of 0 change nothing."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    """Turn of the colour circle, in turns."""


@dataclass(frozen=True)
class Change:
    """What is done to a picture of `width` x `height` pixels and to all regions in it."""

    width: int
    height: int
    window: tuple[int, int, int, int]
    """x, y, width, height of what is shown; reaches beyond the picture when it zooms out."""
    flip: bool = False
    colour: Colour = Colour()

    @property
    def _moved(self) -> bool:
        return self.window != (0, 0, self.width, self.height)

    def picture(self, pixels: np.ndarray) -> np.ndarray:
        """uint8[window height, window width, 3] of a picture uint8[height, width, 3]."""
        shown = self._grid(pixels, np.array(PAD_COLOUR, np.uint8))
        return _coloured(shown, self.colour)

    def media(self, image: MediaRef) -> MediaRef:
        """The picture's record with its new size."""
        return replace(image, width=self.window[2], height=self.window[3])

    def region(self, region: Region, root: Path, image: MediaRef) -> Region:
        """A region, moved; what of it leaves the picture is cut off, and None when nothing stays.

        Args:
          root: folder of depth maps.
          image: the unchanged picture's record.

        Raises:
          ImageError: the depth map cannot be read.
        """
        box = None if region.box is None else self._box(region.box)
        point = None if region.point is None else self._point(region.point)
        depth, joints = region.depth, region.keypoints
        return replace(
            region,
            box=box,
            point=point,
            mask=None if region.mask is None else self._mask(region.mask),
            keypoints=None if joints is None else self._keypoints(joints),
            depth=None if depth is None else self._depth(depth, root, image),
        )

    def _grid(self, values: np.ndarray, empty: np.ndarray) -> np.ndarray:
        """Pixels [height, width, ...] seen through the window, `empty` beyond the picture."""
        x, y, width, height = self.window
        if self._moved:
            result = np.empty((height, width, *values.shape[2:]), values.dtype)
            result[...] = empty
            rows = slice(max(0, y), min(self.height, y + height))
            cols = slice(max(0, x), min(self.width, x + width))
            result[rows.start - y : rows.stop - y, cols.start - x : cols.stop - x] = values[
                rows, cols
            ]
            values = result
        return values[:, ::-1] if self.flip else values

    def _box(
        self, box: tuple[float, float, float, float]
    ) -> tuple[float, float, float, float] | None:
        x, y, width, height = self.window
        x1, x2 = (min(max(v - x, 0.0), float(width)) for v in (box[0], box[2]))
        y1, y2 = (min(max(v - y, 0.0), float(height)) for v in (box[1], box[3]))
        if x1 >= x2 or y1 >= y2:
            return None
        return (width - x2, y1, width - x1, y2) if self.flip else (x1, y1, x2, y2)

    def _point(self, point: Sequence[float]) -> tuple[float, float] | None:
        px, py = point[0] - self.window[0], point[1] - self.window[1]
        # Joints may lie a pixel outside the picture, and stay there.
        if not (-1 <= px <= self.window[2] + 1 and -1 <= py <= self.window[3] + 1):
            return None
        return (self.window[2] - px if self.flip else px), py

    def _mask(self, mask: Mask) -> Mask | None:
        if self.flip or self._moved:
            pixels = rle.decode(mask.counts, mask.h, mask.w)
            if self._moved and pixels.shape != (self.height, self.width):
                size = (self.width, self.height)
                pixels = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST))
            if not self._moved:
                pixels = pixels[:, ::-1]
            else:
                pixels = self._grid(pixels, np.zeros((), np.uint8))
            if not pixels.any():
                return None
            h, w = pixels.shape
            mask = replace(mask, h=h, w=w, counts=rle.encode(pixels))
        return mask

    def _keypoints(self, joints: list[list[float]]) -> list[list[float]]:
        moved = []
        for joint in joints:
            place = self._point(joint) if joint[2] else None
            moved.append([0.0, 0.0, 0.0] if place is None else [*place, joint[2]])
        if self.flip:
            for left, right in MIRRORED[len(joints)] if joints else ():
                moved[left], moved[right] = moved[right], moved[left]
        return moved if any(joint[2] for joint in moved) else []

    def _depth(self, depth: Depth, root: Path, image: MediaRef) -> Depth:
        if not (self.flip or self._moved):
            return depth
        samples = load_samples(depth, image, root)
        shown = self._grid(samples, np.array(max(0, depth.invalid)))
        return replace(depth, data=depth_png.encode_samples(shown))


class ChangedSquare:
    """Reads the one picture of a row as it is shown after a change; see `squares.SquareReader`."""

    def __init__(self, root: Path, size: int, original: MediaRef, change: Change) -> None:
        self.root, self.size = Path(root), size
        self._original, self._change = original, change

    def __call__(self, media: MediaRef) -> np.ndarray:
        """uint8[size, size, 3]; raises `images.ImageError` as `load_image` does."""
        return to_square(self._change.picture(load_image(self._original, self.root)), self.size)


def draw_change(
    dialogs: Sequence[Dialog], image: MediaRef, config: AugmentConfig, rng: np.random.Generator
) -> Change:
    """What is done to the picture `image` that the dialogues share.

    As many numbers are drawn whatever the dialogues say.
    """
    wants_flip = rng.random() < config.flip
    low, high = np.log(config.scale)
    scale, along_x, along_y = math.exp(rng.uniform(low, high)), *rng.random(2)
    shade = 1.0 + config.colour * rng.uniform(-1.0, 1.0, 3)
    hue = config.hue * rng.uniform(-1.0, 1.0)
    may = allowed(dialogs)
    # Joints of an unknown skeleton cannot change sides.
    joints = {len(r.keypoints) for d in dialogs for r in d.regions if r.keypoints}
    window = (0, 0, image.width, image.height)
    if scale != 1.0 and (may.crop if scale > 1.0 else may.pad):
        window = _window(dialogs, image, scale, along_x, along_y) or window
    colour = Colour(
        brightness=shade[0] if may.light else 1.0,
        contrast=shade[1] if may.light else 1.0,
        saturation=shade[2] if may.hue else 1.0,
        hue=hue if may.hue else 0.0,
    )
    flip = bool(wants_flip and may.flip and joints <= set(MIRRORED))
    return Change(image.width, image.height, window, flip, colour)


def apply_change(dialogs: Sequence[Dialog], change: Change, root: Path) -> list[Dialog]:
    """The dialogues about the changed picture.

    Raises:
      ImageError: a depth map cannot be read.
    """
    return [_changed(dialog, change, root) for dialog in dialogs]


def _changed(dialog: Dialog, change: Change, root: Path) -> Dialog:
    image = dialog.image
    if image is None:
        return dialog
    regions = [change.region(region, root, image) for region in dialog.regions]
    return replace(dialog, image=change.media(image), regions=regions)


def _window(
    dialogs: Sequence[Dialog], image: MediaRef, scale: float, along_x: float, along_y: float
) -> tuple[int, int, int, int] | None:
    """x, y, width, height of the part to show; None where it cannot hold all that is referred to."""
    width, height = round(image.width / scale), round(image.height / scale)
    if min(width, height) < MIN_SIDE:
        return None
    low, high = _extent(dialogs, image)
    start = []
    for size, whole, first, last, share in (
        (width, image.width, low[0], high[0], along_x),
        (height, image.height, low[1], high[1], along_y),
    ):
        least, most = sorted((0, whole - size))
        if size < whole:
            least, most = max(least, math.ceil(last) - size), min(most, math.floor(first))
        if least > most:
            return None
        start.append(min(most, least + int(share * (most - least + 1))))
    return start[0], start[1], width, height


def _extent(dialogs: Sequence[Dialog], image: MediaRef) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest x, y of all that prompts and targets show; inverted when there is none."""
    corners = [
        corner
        for dialog in dialogs
        for k in _referred(dialog)
        for corner in _corners(dialog.regions[k], image)
    ]
    limits = np.array([image.width, image.height], np.float64)
    if not corners:
        return limits, np.zeros(2)
    points = np.clip(np.array(corners, np.float64), 0.0, limits)
    return points.min(axis=0), points.max(axis=0)


def _referred(dialog: Dialog) -> set[int]:
    targets = {k for turn in dialog.turns for span in turn.spans for k in span.targets}
    return targets | {p.region for turn in dialog.turns for p in turn.prompts}


def _corners(region: Region, image: MediaRef) -> list[tuple[float, float]]:
    found = [(x, y) for x, y, seen in region.keypoints or () if seen]
    if region.box is not None:
        found += [region.box[:2], region.box[2:]]
    if region.point is not None:
        found.append(region.point)
    if region.mask is not None:
        tight = rle.tight_box(region.mask.counts, region.mask.h, region.mask.w)
        if tight is not None:
            wide, high = image.width / region.mask.w, image.height / region.mask.h
            found += [(tight[0] * wide, tight[1] * high), (tight[2] * wide, tight[3] * high)]
    return found


def _coloured(pixels: np.ndarray, colour: Colour) -> np.ndarray:
    if colour == Colour():
        return pixels
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    for enhance, factor in (
        (ImageEnhance.Brightness, colour.brightness),
        (ImageEnhance.Contrast, colour.contrast),
        (ImageEnhance.Color, colour.saturation),
    ):
        if factor != 1.0:
            picture = enhance(picture).enhance(factor)
    if colour.hue:
        parts = np.array(picture.convert("HSV"))
        parts[..., 0] += np.uint8(round(colour.hue * 256) % 256)
        picture = Image.fromarray(parts, "HSV").convert("RGB")
    return np.array(picture)
