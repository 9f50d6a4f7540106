"""Visual Genome: phrases that describe regions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.records import Dialog, MediaRef, PromptKind, Region
from data_pipelines.sources.base import (
    Drops,
    RecordError,
    box_xywh,
    need,
    picture,
    read_list,
)
from data_pipelines.sources.dialogs import dialog_of, phrase_turn, shown, turn_of, words
from data_pipelines.sources.refcoco import TARGET


def regions(
    path: Path, split: str, folder: str, drops: Drops, *, images: str = "", phrase: str = TARGET
) -> Iterator[Dialog]:
    """T06 and T17 of every region.

    Args:
      path: `region_descriptions.json`.
      split: split of the records; the dataset itself has none.
      folder: folder of VG_100K/ and VG_100K_2/.
      drops: takes unusable records.
      images: `image_data.json`, which lies beside `path` by default.
      phrase: as in `refcoco.expressions`.
    """
    path = Path(path)
    known = _pictures(Path(images) if images else path.parent / "image_data.json", folder, drops)
    for place, item in enumerate(read_list(path)):
        rows: list[Any] = []
        with drops.guard(f"{path}, item {place}"):
            rows = list(need(item, "regions")[0])
        for number, row in enumerate(rows):
            found: list[Dialog] = []
            with drops.guard(f"{path}, item {place}, region {number}"):
                found = list(_dialogs(row, known, split, phrase))
            yield from found


def _pictures(path: Path, folder: str, drops: Drops) -> dict[int, MediaRef]:
    found: dict[int, MediaRef] = {}
    for place, row in enumerate(read_list(path)):
        with drops.guard(f"{path}, image at index {place}"):
            number, url, width, height = need(row, "image_id", "url", "width", "height")
            # The pictures lie in two folders; only the address tells which.
            found[number] = picture("/".join(url.split("/")[-2:]), folder, width, height)
    return found


def _dialogs(
    row: dict[str, Any], known: dict[int, MediaRef], split: str, phrase: str
) -> Iterator[Dialog]:
    number, image_id, text = need(row, "region_id", "image_id", "phrase")
    if image_id not in known:
        raise RecordError("V02", f"image {image_id} is not in image_data.json; drop the region")
    image, text = known[image_id], words(text, "phrase", "V18")
    box = box_xywh(need(row, "x", "y", "width", "height"), image)
    written = TARGET if phrase == TARGET else text.rstrip(".")
    turns = {
        "T06": turn_of("T06", text, prompts=shown(PromptKind.BOX, 0)),
        "T17": phrase_turn("T17", written, [0], slots={"expr": text.rstrip(".")}),
    }
    for task, turn in turns.items():
        uid, regions = ("visual_genome", split, number), [Region(box=box)]
        yield dialog_of(task, uid, image, [turn], regions, image_id=image_id, region_id=number)
