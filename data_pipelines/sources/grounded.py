"""Grounded captions: Flickr30k Entities rows (boxes) and OpenPSG rows (masks)."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.records import Dialog, MediaRef, Region, Span, Turn
from data_pipelines.sources.base import (
    Drops,
    RecordError,
    box_of,
    box_xyxy,
    mask_of,
    need,
    picture,
    read_lines,
    read_list,
)
from data_pipelines.sources.sizes import Sizes
from data_pipelines.tasks import TASKS
from refvlm_jax.trp.tokens import Unit

_MARK = re.compile(r"<ph_st>(.*?)<ph_ed>")


def flickr_boxes(
    path: Path, split: str, folder: str, drops: Drops, sizes: Sizes
) -> Iterator[Dialog]:
    """T19 of every row {image_id, boxes, sentence with <ph_st>...<ph_ed>, boxes_seq}."""
    for number, row in read_lines(path, drops):
        found: list[Dialog] = []
        with drops.guard(f"{path}:{number}"):
            found = [_flickr_dialog(row, number, split, folder, sizes)]
        yield from found


def _flickr_dialog(
    row: dict[str, Any], number: int, split: str, folder: str, sizes: Sizes
) -> Dialog:
    name, sentence, boxes, sequence = need(row, "image_id", "sentence", "boxes", "boxes_seq")
    if name not in sizes:
        raise RecordError("V02", f"picture {name} is not in the image list; add it")
    image = picture(name, folder, *sizes[name])
    regions = [Region(box=box_xyxy(box, image)) for box in boxes]
    answer, places = strip_marks(sentence)
    if len(places) != len(sequence):
        raise RecordError(
            "V10", f"{len(places)} phrases, {len(sequence)} box lists; they must agree"
        )
    spans = [
        Span(start=s, end=e, unit=Unit.BOX, targets=_checked_targets(t, len(regions)))
        for (s, e), t in zip(places, sequence, strict=True)
        if t
    ]
    return _dialog("T19", "flickr30k", split, number, image, regions, answer, spans, row)


def _checked_targets(targets: Any, boxes: int) -> list[int]:
    whole = isinstance(targets, list) and all(type(k) is int for k in targets)
    if not whole or not all(0 <= k < boxes for k in targets):
        raise RecordError(
            "V10", f"box list {targets!r} does not point into {boxes} boxes; correct it"
        )
    return targets


def strip_marks(sentence: str) -> tuple[str, list[tuple[int, int]]]:
    """The plain sentence and the range of every marked phrase in it."""
    plain, places, last = "", [], 0
    for match in _MARK.finditer(sentence):
        plain += sentence[last : match.start()]
        places.append((len(plain), len(plain) + len(match[1])))
        plain += match[1]
        last = match.end()
    return plain + sentence[last:], places


def open_psg(path: Path, split: str, folder: str, drops: Drops) -> Iterator[Dialog]:
    """T20 of every row {file_name, caption, groundings: {phrase: {token_positives, rle_masks}}}."""
    for number, row in enumerate(read_list(path)):
        found: list[Dialog] = []
        with drops.guard(f"{path}, row {number}"):
            found = [_psg_dialog(row, number, split, folder)]
        yield from found


def _psg_dialog(row: dict[str, Any], number: int, split: str, folder: str) -> Dialog:
    name, caption, groundings = need(row, "file_name", "caption", "groundings")
    image = picture(name, folder, *_size(row, groundings))
    regions: list[Region] = []
    spans = []
    for phrase, found in groundings.items():
        place, masks = need(found, "token_positives", "rle_masks")
        start, end = _checked_place(place, phrase, caption)
        targets = list(range(len(regions), len(regions) + len(masks)))
        regions += [_masked(m, image) for m in masks]
        spans.append(Span(start=start, end=end, unit=Unit.MASK, targets=targets))
    return _dialog("T20", "open_psg", split, number, image, regions, caption, spans, row)


def _size(row: dict[str, Any], groundings: dict[str, Any]) -> tuple[int, int]:
    if "width" in row and "height" in row:
        return row["width"], row["height"]
    for found in groundings.values():
        for mask in found.get("rle_masks", []):
            height, width = mask["size"]
            return width, height
    raise RecordError("V02", "no mask tells the picture's size; drop the row")


def _checked_place(place: Any, phrase: str, caption: str) -> tuple[int, int]:
    start, end = place[0] if place and isinstance(place[0], list) else place
    if caption[start:end] != phrase:
        raise RecordError(
            "V20", f"phrase {phrase!r} is not at [{start}, {end}) of the caption; correct the row"
        )
    return start, end


def _masked(segmentation: Any, image: MediaRef) -> Region:
    mask = mask_of(segmentation, image)
    return Region(box=box_of(mask), mask=mask)


def _dialog(
    task: str,
    source: str,
    split: str,
    number: int,
    image: MediaRef,
    regions: list[Region],
    answer: str,
    spans: list[Span],
    row: dict[str, Any],
) -> Dialog:
    spec = TASKS[task]
    return Dialog(
        uid=f"{source}/{split}/{number}/{task}",
        source=source,
        split=split,
        task_id=task,
        image=image,
        regions=regions,
        turns=[Turn(task_name=spec.command, bank=spec.bank, answer=answer, spans=spans)],
        provenance={"image_id": row.get("id", number)},
    )
