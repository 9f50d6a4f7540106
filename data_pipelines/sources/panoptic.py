"""COCO panoptic: every pixel belongs to a thing or to a kind of stuff."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.records import Dialog, Region
from data_pipelines.sources.base import Drops, RecordError, SourceError, need, read_json
from data_pipelines.sources.coco import category_names, image_number, media, objects
from data_pipelines.sources.label_maps import pixel_region, read_ids

_SUFFIX = re.compile(r"(-(other|merged|stuff))+$")


def segments(
    path: Path, split: str, folder: str, drops: Drops, *, maps: str = ""
) -> Iterator[Dialog]:
    """T14 of every picture: things and stuff, one phrase a class.

    Args:
      path: `panoptic_{split}2017.json`.
      split: split of the records.
      folder: folder of the pictures.
      drops: takes unusable records.
      maps: folder of the PNG maps; the one beside `path` with its name by default.
    """
    path = Path(path)
    content = read_json(path, keys=("images", "annotations", "categories"))
    names = class_names(content["categories"], path, drops)
    images = picture_rows(content, path, drops)
    at = map_folder(path, maps)
    for place, row in enumerate(content["annotations"]):
        found: list[Dialog] = []
        with drops.guard(f"{path}, annotation {place}"):
            number, name, listed = need(row, "image_id", "file_name", "segments_info")
            image = media(_row_of(images, number), folder)
            ids = read_ids(at / name, image)
            where = f"{path}, image {number}"
            regions = list(_regions(ids, listed, names, where, drops))
            known = image_number(number, place)
            if any(not r.is_crowd for r in regions):
                found = [objects("T14", ("coco_panoptic", split, number), image, regions, known)]
        yield from found


def _regions(
    ids: np.ndarray, listed: Any, names: dict[int, str], where: str, drops: Drops
) -> Iterator[Region]:
    for segment in listed:
        found: list[Region] = []
        with drops.guard(f"{where}, segment {segment.get('id')}"):
            number, category = need(segment, "id", "category_id")
            if category not in names:
                raise RecordError("V01", f"unknown category id {category}; correct the segment")
            crowd = bool(segment.get("iscrowd", 0))
            found = [pixel_region(ids == number, names[category], is_crowd=crowd)]
        yield from found


def class_names(rows: Any, path: Path, drops: Drops) -> dict[int, str]:
    """Class names by id, as text: "wall-other-merged" is a wall."""
    names = category_names(rows, path, drops)
    return {k: _SUFFIX.sub("", name).replace("-", " ") for k, name in names.items()}


def picture_rows(content: dict[str, Any], path: Path, drops: Drops) -> dict[int, dict[str, Any]]:
    """Rows of `images` by id."""
    found: dict[int, dict[str, Any]] = {}
    for place, row in enumerate(content["images"]):
        with drops.guard(f"{path}, image at index {place}"):
            found[need(row, "id")[0]] = row
    return found


def _row_of(images: dict[int, dict[str, Any]], number: Any) -> dict[str, Any]:
    if number not in images:
        raise RecordError("V02", f"image {number} is not among the file's images; correct it")
    return images[number]


def map_folder(path: Path, maps: str) -> Path:
    """Folder of the PNG maps of a panoptic file."""
    folder = Path(maps) if maps else path.with_suffix("")
    if not folder.is_dir():
        raise SourceError(
            f"{folder}: no folder of PNG maps; unpack {path.stem}.zip there, or name it in `maps`"
        )
    return folder
