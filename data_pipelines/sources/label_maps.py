"""Pictures whose pixels are numbers: reading them, and a region of some of their pixels."""

from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.records import Mask, MediaRef, Region
from data_pipelines.sources.base import RecordError, box_of
from refvlm_jax import rle

_NUMBERS = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L")


def read_labels(path: Path, image: MediaRef | None = None) -> np.ndarray:
    """int64[H, W] of a single-channel map: grey levels, palette indices or 16-bit numbers.

    Raises:
      RecordError: missing, unreadable, a colour picture, or of another size than `image`.
    """
    values, mode = _pixels(path, image)
    if mode not in _NUMBERS or values.ndim != 2:
        raise RecordError("V06", f"{path} is a {mode} picture, not a map of numbers; replace it")
    return values.astype(np.int64)


def read_ids(path: Path, image: MediaRef | None = None) -> np.ndarray:
    """int64[H, W] of COCO's panoptic coding, R + 256 G + 65536 B; errors as `read_labels`."""
    values, mode = _pixels(path, image)
    if mode != "RGB":
        raise RecordError("V06", f"{path} is a {mode} picture, not RGB-coded ids; replace it")
    return values.astype(np.int64) @ np.array([1, 256, 65536])


def _pixels(path: Path, image: MediaRef | None) -> tuple[np.ndarray, str]:
    try:
        with Image.open(path) as opened:
            values, mode = np.array(opened), opened.mode
    except FileNotFoundError:
        raise RecordError("V06", f"{path} is missing; fetch it or drop the record") from None
    except Exception as error:  # Pillow's readers raise many unrelated types on damaged files
        kind = type(error).__name__
        raise RecordError("V06", f"{path} cannot be read ({kind}); fetch it again") from None
    if image is not None and values.shape[:2] != (image.height, image.width):
        height, width = values.shape[:2]
        raise RecordError(
            "V06",
            f"{path} is {width} x {height}, its picture {image.width} x {image.height}; "
            "take both from one archive",
        )
    return values, mode


def pixel_region(inside: np.ndarray, category: str = "", *, is_crowd: bool = False) -> Region:
    """Region of the set pixels [H, W]; RecordError when there is none."""
    if not inside.any():
        raise RecordError("V06", f"{category or 'segment'} covers no pixel; remove it")
    height, width = inside.shape
    mask = Mask(h=height, w=width, counts=rle.encode(inside), origin="labelmap")
    return Region(category=category, box=box_of(mask), mask=mask, is_crowd=is_crowd)
