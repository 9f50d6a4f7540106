"""Bits of native annotation files for converter tests: drawn shapes, own words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.records import Dialog
from data_pipelines.validate import validate
from refvlm_jax import rle

SQUARE = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]]
FAR = [[40.0, 20.0, 50.0, 20.0, 50.0, 40.0, 40.0, 40.0]]
IMAGE = {"id": 7, "file_name": "a.jpg", "width": 60, "height": 50}
SIZES = {"a.jpg": (60, 50)}


def packed(polygons: list[list[float]]) -> dict[str, Any]:
    """Compressed run-length form of polygons on the 60 x 50 picture."""
    return {"size": [50, 60], "counts": rle.from_segmentation(polygons, 50, 60).decode("ascii")}


def annotation(number: int, **changes: Any) -> dict[str, Any]:
    row = {
        "id": number, "image_id": 7, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400,
        "iscrowd": 0, "segmentation": SQUARE,
    }  # fmt: skip
    return row | changes


def write(path: Path, content: Any) -> Path:
    """Text as it is, anything else as JSON; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def write_lines(path: Path, rows: list[Any]) -> Path:
    return write(path, "\n".join(map(json.dumps, rows)))


def draw(path: Path, values: np.ndarray) -> Path:
    """A picture or a map of ids as PNG or JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def photo(path: Path, width: int = 60, height: int = 50) -> Path:
    pixels = np.full((height, width, 3), 90, np.uint8)
    pixels[: height // 2] = 160  # a picture of one colour is taken for a placeholder
    return draw(path, pixels)


def sound(dialogs: list[Dialog]) -> list[Dialog]:
    """The dialogues, after every one passed validation and no uid occurred twice."""
    for dialog in dialogs:
        assert not validate(dialog), (dialog.uid, validate(dialog))
    assert len({d.uid for d in dialogs}) == len(dialogs)
    return dialogs


def phrases(dialog: Dialog, turn: int = 0) -> list[tuple[str, list[int]]]:
    """Every phrase of a turn with its targets."""
    asked = dialog.turns[turn]
    return [(asked.answer[s.start : s.end], s.targets) for s in asked.spans]
