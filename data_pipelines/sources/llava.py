"""LLaVA's conversation files: the instruction mix, and caption files for alignment."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.records import Dialog, Turn
from data_pipelines.sources.base import Drops, RecordError, need, read_list
from data_pipelines.sources.dialogs import dialog_of, turn_of, without_image_mark
from data_pipelines.sources.sizes import Sizes, sized_picture

_BOX = re.compile(r"\[\s*\d?\.\d+(\s*,\s*\d?\.\d+){3}\s*\]")
"""A box written as four fractions."""


def mix(
    path: Path, split: str, folder: str, drops: Drops, sizes: Sizes, *, coordinates: bool = False
) -> Iterator[Dialog]:
    """T05 of every row {id, image?, conversations}; rows without a picture are text only.

    Args:
      path: `llava_v1_5_mix665k.json` or another file of its layout.
      split: split of the records.
      folder: folder that holds coco/, gqa/, ocr_vqa/, textvqa/ and vg/.
      drops: takes unusable records; counts what is left out as "coordinates".
      sizes: sizes of the pictures.
      coordinates: keep rows that write boxes as numbers, which says another thing than references.
    """
    for number, row in enumerate(read_list(path)):
        found: list[Dialog] = []
        with drops.guard(f"{path}, row {number}"):
            found = [_dialog("T05", "llava_mix", row, number, split, folder, sizes)]
        if found and not coordinates and any(_BOX.search(_text(t)) for t in found[0].turns):
            drops.counts["coordinates"] += 1
            continue
        yield from found


def captions(path: Path, split: str, folder: str, drops: Drops, sizes: Sizes) -> Iterator[Dialog]:
    """T01 of every row, in its own words: `chat.json` (CC3M 595k), `blip_laion_cc_sbu_558k.json`."""
    for number, row in enumerate(read_list(path)):
        found: list[Dialog] = []
        with drops.guard(f"{path}, row {number}"):
            found = [_dialog("T01", "llava_captions", row, number, split, folder, sizes)]
        yield from found


def exchanges(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Questions and answers of a row, which must alternate."""
    (said,) = need(row, "conversations")
    texts = [need(part, "from", "value") for part in said]
    speakers = [speaker for speaker, _ in texts]
    if not texts or speakers != ["human", "gpt"] * (len(texts) // 2):
        raise RecordError("V01", f"speakers {speakers} do not alternate from human to gpt; drop it")
    values = [without_image_mark(value) for _, value in texts]
    if not all(values):
        raise RecordError("V03", "an empty question or answer; remove the row")
    return list(zip(values[::2], values[1::2], strict=True))


def _dialog(
    task: str,
    source: str,
    row: dict[str, Any],
    number: int,
    split: str,
    folder: str,
    sizes: Sizes,
) -> Dialog:
    turns = [turn_of(task, answer, question=question) for question, answer in exchanges(row)]
    name = row.get("image")
    image = sized_picture(name, folder, sizes) if name else None
    if image is None and task == "T01":
        raise RecordError("V02", "a caption without a picture; remove the row")
    # Ids repeat (several rows about one picture), so the place in the file tells rows apart.
    known = str(row.get("id", ""))
    return dialog_of(task, (source, split, number), image, turns, native_id=known)


def _text(turn: Turn) -> str:
    return f"{turn.literal} {turn.answer}"
