"""COCO run-length masks: column-major runs of zeros and ones as a compressed byte string.

pycocotools does the work, but trusts its input: a damaged string makes it read past the end. Every
string is therefore taken apart and checked here first.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from pycocotools import mask as coco


def encode(mask: np.ndarray) -> bytes:
    """The compressed string of a mask [H, W]; every non-zero value counts as inside."""
    if mask.ndim != 2 or not mask.size:
        raise ValueError(f"mask of shape {mask.shape}; expected [H, W] with at least one pixel")
    return coco.encode(np.asfortranarray(mask != 0).view(np.uint8))["counts"]


def decode(counts: bytes, h: int, w: int) -> np.ndarray:
    """uint8[H, W] {0, 1} of a compressed string; raises ValueError when it is damaged."""
    runs(counts, h, w)
    return coco.decode({"size": [h, w], "counts": counts})


def area(counts: bytes, h: int, w: int) -> int:
    """Pixels inside a mask."""
    return int(runs(counts, h, w)[1::2].sum())


def tight_box(counts: bytes, h: int, w: int) -> tuple[int, int, int, int] | None:
    """x1, y1, x2, y2 (right and lower ends exclusive) around a mask; None for an empty one."""
    if not area(counts, h, w):
        return None
    x, y, width, height = coco.toBbox({"size": [h, w], "counts": counts})
    return int(x), int(y), int(x + width), int(y + height)


@lru_cache(maxsize=256)  # rules, prompts and targets of a record ask for the same mask in turn
def runs(counts: bytes, h: int, w: int) -> np.ndarray:
    """Lengths of the alternating runs of zeros and ones, read-only int64[n], zeros first.

    Raises:
      ValueError: the string is damaged or its runs do not fill `h` x `w` pixels.
    """
    lengths = _accumulate(_read_numbers(counts))
    if (lengths < 0).any() or lengths.sum() != h * w:
        raise ValueError(
            f"RLE runs cover {lengths.sum()} pixels, expected {h} x {w} = {h * w}: "
            "the string is damaged or has another size"
        )
    lengths.flags.writeable = False
    return lengths


def _read_numbers(counts: bytes) -> np.ndarray:
    """Signed numbers of a string: 5 bits a character, low bits first, bit 5 = goes on."""
    code = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(code & 32 == 0)
    complete = len(last) > 0 and last[-1] == len(code) - 1
    if not complete or code.min() < 0 or code.max() > 63:
        raise ValueError(f"RLE string of {len(counts)} bytes is damaged or cut; encode it again")
    first = np.concatenate([[0], last[:-1] + 1])
    length = last - first + 1
    if length.max() > 12:
        raise ValueError("RLE string holds a number of more than 60 bits; encode it again")
    place = np.arange(len(code)) - np.repeat(first, length)
    value = np.add.reduceat((code & 31) << (5 * place), first)
    return np.where(code[last] & 16, value - (np.int64(1) << (5 * length)), value)


def _accumulate(numbers: np.ndarray) -> np.ndarray:
    """Run lengths: from the fourth number on, each is a difference to the last but one."""
    lengths = numbers.copy()
    lengths[1::2] = np.cumsum(numbers[1::2])
    lengths[2::2] = np.cumsum(numbers[2::2])
    return lengths


def from_segmentation(segmentation: Any, h: int, w: int) -> bytes:
    """The compressed string of a COCO `segmentation` on a picture of `h` x `w` pixels.

    Args:
      segmentation: a list of polygons [x1, y1, x2, y2, ...] in pixels, whose UNION is taken; or an
        RLE object {"size": [h, w], "counts": list of runs or compressed string}.

    Raises:
      ValueError: no polygon, one with fewer than three points or a half point, a number that is not
        finite or far outside the picture, or an RLE of another size.
    """
    if isinstance(segmentation, Mapping):
        return _from_rle(segmentation, h, w)
    if isinstance(segmentation, Sequence) and not isinstance(segmentation, str | bytes):
        return _from_polygons(segmentation, h, w)
    kind = type(segmentation).__name__
    raise ValueError(f"segmentation is a {kind}; expected a list of polygons or an RLE object")


def _from_rle(rle: Mapping[str, Any], h: int, w: int) -> bytes:
    if list(rle.get("size", ())) != [h, w]:
        raise ValueError(f"RLE has size {rle.get('size')}, the picture [h, w] = [{h}, {w}]")
    counts = rle.get("counts")
    if isinstance(counts, Sequence) and not isinstance(counts, str | bytes):
        return _from_runs(counts, h, w)
    data = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    if not isinstance(data, bytes):
        raise ValueError(f"RLE counts are {type(counts).__name__}; expected a list or a string")
    runs(data, h, w)
    return data


def _from_runs(counts: Sequence[int], h: int, w: int) -> bytes:
    whole = all(isinstance(run, int) and run >= 0 for run in counts)
    if not whole or sum(counts) != h * w:
        raise ValueError(f"RLE counts must be whole, not negative, and add up to {h} x {w}")
    return coco.frPyObjects({"size": [h, w], "counts": list(counts)}, h, w)["counts"]


def _from_polygons(polygons: Sequence[Sequence[float]], h: int, w: int) -> bytes:
    if not len(polygons):
        raise ValueError("segmentation has no polygon; drop the annotation or its mask")
    for number, polygon in enumerate(polygons):
        _check_polygon(polygon, 2 * max(h, w), f"polygon {number}")
    parts = coco.frPyObjects([[float(v) for v in polygon] for polygon in polygons], h, w)
    return coco.merge(parts)["counts"]


def _check_polygon(polygon: Any, limit: int, where: str) -> None:
    if not isinstance(polygon, Sequence) or isinstance(polygon, str | bytes):
        raise ValueError(f"{where} is a {type(polygon).__name__}; expected a list of numbers")
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"{where} has {len(polygon)} numbers; expected x, y of at least 3 points")
    if not all(isinstance(v, int | float) and np.isfinite(v) for v in polygon):
        raise ValueError(f"{where} holds something that is not a finite number")
    # pycocotools walks every edge pixel by pixel: a stray coordinate would exhaust memory.
    if max(map(abs, polygon)) > limit:
        raise ValueError(f"{where} reaches {max(map(abs, polygon)):g}, far outside the picture")
