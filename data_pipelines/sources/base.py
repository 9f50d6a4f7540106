"""What every source converter shares: reading native files, and dropping bad records aloud."""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.records import Mask, MediaRef, Region
from refvlm_jax import rle

_LOG = logging.getLogger(__name__)


class SourceError(ValueError):
    """A native file is missing or of another kind; nothing of the source can be read."""


class RecordError(ValueError):
    """One record is unusable; `code` is the validation rule it breaks."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


@dataclass
class Drops:
    """Dropped records, counted by rule and kept with one line each."""

    counts: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)

    def add(self, code: str, where: str, message: str) -> None:
        """Counts and logs one dropped record."""
        self.counts[code] += 1
        self.lines.append(f"{where}: dropped [{code}]: {message}")
        _LOG.warning(self.lines[-1])

    @contextmanager
    def guard(self, where: str) -> Iterator[None]:
        """Drops the record read inside the block, aloud, when it is unusable.

        A native file is anybody's: a field of another type than its format says is a bad record
        too, not a reason to lose the ones after it.
        """
        try:
            yield
        except RecordError as error:
            self.add(error.code, where, str(error))
        except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
            kind = type(error).__name__
            text = " ".join(str(error).split())
            self.add(
                "V01", where, f"a field is not what the format says ({kind}: {text}); repair it"
            )


def read_json(path: Path, *, keys: tuple[str, ...] = ()) -> Any:
    """A whole JSON file.

    Raises:
      SourceError: missing, not JSON, or without one of the top-level `keys`.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(f"{path}: not found; see data_pipelines/sources/README.md") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: not JSON ({error}); download it again") from None
    missing = [k for k in keys if not isinstance(content, dict) or k not in content]
    if missing:
        raise SourceError(f"{path}: no {missing} at the top level; is it another file version?")
    return content


def read_list(path: Path) -> list[Any]:
    """A JSON file whose top level is a list; errors as `read_json`."""
    content = read_json(path)
    if not isinstance(content, list):
        raise SourceError(f"{path}: the top level is no list; is it another file version?")
    return content


def read_lines(path: Path, drops: Drops) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a JSON-lines file with their line numbers; malformed lines are dropped aloud."""
    if not Path(path).is_file():
        raise SourceError(f"{path}: not found; see data_pipelines/sources/README.md")
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                drops.add("V01", f"{path}:{number}", f"not JSON ({error.msg}); repair the line")
                continue
            if isinstance(row, dict):
                yield number, row
            else:
                drops.add("V01", f"{path}:{number}", "not a JSON object; repair the line")


def need(row: dict[str, Any], *keys: str) -> list[Any]:
    """Values of fields that must be there."""
    if not isinstance(row, dict):
        raise RecordError("V01", f"{row!r:.60} is not a JSON object; repair the record")
    if missing := [k for k in keys if k not in row]:
        raise RecordError("V01", f"fields {missing} are missing; is it another file version?")
    return [row[k] for k in keys]


def picture(name: Any, folder: str, width: Any, height: Any) -> MediaRef:
    """The picture `name` of `folder`, its size checked to be whole and positive."""
    if not isinstance(name, str) or not name:
        raise RecordError("V02", f"picture name {name!r} is not a file name; correct it")
    sides = (width, height)
    if any(not isinstance(s, int) or isinstance(s, bool) or not 0 < s < 65536 for s in sides):
        raise RecordError("V02", f"picture size {width!r} x {height!r} is no size; correct it")
    return MediaRef(path=f"{folder}/{name}" if folder else name, width=width, height=height)


def box_xyxy(values: Any, image: MediaRef) -> tuple[float, float, float, float]:
    """A checked x1, y1, x2, y2 box inside the picture; up to two pixels outside are clipped."""
    box = np.asarray(values, np.float64)
    if box.shape != (4,) or not np.isfinite(box).all():
        raise RecordError("V05", f"box {values!r} is not four finite numbers; correct it")
    limits = np.array([image.width, image.height] * 2, np.float64)
    clipped = np.clip(box, 0, limits)
    if np.abs(clipped - box).max() > 2:
        raise RecordError(
            "V05",
            f"box {box.tolist()} leaves the {image.width}x{image.height} picture; check that "
            "annotation and picture belong together",
        )
    x1, y1, x2, y2 = clipped.tolist()
    if x2 - x1 <= 0 or y2 - y1 <= 0 or (x2 - x1) * (y2 - y1) < 1:
        raise RecordError("V05", f"box {box.tolist()} is empty; remove the annotation")
    return x1, y1, x2, y2


def box_xywh(values: Any, image: MediaRef) -> tuple[float, float, float, float]:
    """COCO's x, y, width, height as a checked x1, y1, x2, y2."""
    box = np.asarray(values, np.float64)
    if box.shape == (4,):
        box = np.concatenate([box[:2], box[:2] + box[2:]])
    return box_xyxy(box, image)


def mask_of(segmentation: Any, image: MediaRef, origin: str = "polygon") -> Mask:
    """A checked mask: the union of all polygons, or either form of run-length coding."""
    try:
        counts = rle.from_segmentation(segmentation, image.height, image.width)
    except (ValueError, TypeError, KeyError) as error:
        raise RecordError("V06", f"segmentation: {error}") from None
    if rle.area(counts, image.height, image.width) == 0:
        raise RecordError("V06", "the mask covers no pixel of the picture; remove the annotation")
    kind = "polygon" if isinstance(segmentation, list) else "rle"
    return Mask(
        h=image.height, w=image.width, counts=counts, origin=kind if origin == "polygon" else origin
    )


def region(row: dict[str, Any], image: MediaRef, category: str = "") -> Region:
    """Region of a COCO-style annotation with `bbox` (xywh) and `segmentation`."""
    bbox, segmentation = need(row, "bbox", "segmentation")
    crowd = bool(row.get("iscrowd", 0))
    return Region(
        category=category,
        box=box_xywh(bbox, image),
        mask=mask_of(segmentation, image),
        is_crowd=crowd,
    )


def box_of(mask: Mask) -> tuple[float, float, float, float]:
    """The tight box of a mask that covers something."""
    box = rle.tight_box(mask.counts, mask.h, mask.w)
    assert box is not None
    x1, y1, x2, y2 = map(float, box)
    return x1, y1, x2, y2


def clean_name(name: str) -> str:
    """A class name as text: underscores are blanks."""
    return " ".join(name.replace("_", " ").split())
