"""Visual7W pointing and PointQA: questions about a place, or answered by one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.records import Dialog, MediaRef, PromptKind, Region
from data_pipelines.sources.base import (
    Drops,
    RecordError,
    SourceError,
    box_xywh,
    box_xyxy,
    need,
    picture,
    read_json,
    read_lines,
)
from data_pipelines.sources.dialogs import dialog_of, phrase_turn, shown, turn_of, words
from data_pipelines.sources.sizes import Sizes, sized_picture

_SPLITS = ("train", "val", "test")
_QUESTIONS = ("question", "obj_question", "super_question", "general_question")
"""PointQA local has the first, LookTwice the others: by pronoun, by kind, by anything."""


def visual7w(path: Path, split: str, folder: str, drops: Drops, sizes: Sizes) -> Iterator[Dialog]:
    """X3 of every question: four boxes are shown, one is the answer.

    Args:
      path: `dataset_v7w_pointing.json`.
      split: train, val or test, as the file knows it.
      folder: folder of the pictures `v7w_*.jpg`.
      drops: takes unusable records.
      sizes: sizes of the pictures.
    """
    path = Path(path)
    content = read_json(path, keys=("images", "boxes"))
    boxes = {}
    for place, row in enumerate(content["boxes"]):
        with drops.guard(f"{path}, box at index {place}"):
            boxes[need(row, "box_id")[0]] = row
    if split not in _SPLITS:
        raise SourceError(f"{path}: no split {split!r}; it has {_SPLITS}")
    for place, row in enumerate(content["images"]):
        own = ""
        with drops.guard(f"{path}, image at index {place}"):
            if (own := need(row, "split")[0]) not in _SPLITS:
                raise RecordError("V01", f"unknown split {own!r}; correct it")
        if own != split:
            continue
        asked: list[Any] = []
        with drops.guard(f"{path}, image at index {place}"):
            asked = list(need(row, "filename", "qa_pairs")[1])
        for number, pair in enumerate(asked):
            found: list[Dialog] = []
            with drops.guard(f"{path}, image at index {place}, question {number}"):
                image = sized_picture(row["filename"], folder, sizes)
                found = [_pointing(pair, boxes, image, split)]
            yield from found


def _pointing(
    pair: dict[str, Any], boxes: dict[int, dict[str, Any]], image: MediaRef, split: str
) -> Dialog:
    number, question, right, wrong = need(pair, "qa_id", "question", "answer", "multiple_choices")
    candidates = [right, *wrong]
    if any(k not in boxes for k in candidates):
        raise RecordError("V01", f"boxes {candidates} are not all in the file; drop the question")
    # The right one must not always come first; the order is the question's own.
    order = np.random.default_rng(number).permutation(len(candidates))
    regions = [
        Region(
            category=boxes[candidates[k]].get("name", ""),
            box=box_xywh([boxes[candidates[k]][c] for c in ("x", "y", "width", "height")], image),
        )
        for k in order
    ]
    turn = phrase_turn(
        "X3",
        "target",
        [int(np.flatnonzero(order == 0)[0])],
        slots={"question": words(question, "question")},
        prompts=shown(PromptKind.BOX, *range(len(order))),
    )
    known = {"image_id": int(pair.get("image_id", 0)), "question_id": number}
    return dialog_of("X3", ("visual7w", split, number), image, [turn], regions, **known)


def point_qa(
    path: Path, split: str, folder: str, drops: Drops, sizes: Sizes, *, kinds: str = "box point"
) -> Iterator[Dialog]:
    """T10 (box) and T11 (point) of every question of PointQA local or LookTwice.

    Args:
      path: `pointQA_local_{split}.jsonl` or `pointQA_twice_{split}.jsonl`: rows {file_path, answer,
        bbox (x1, y1, x2, y2), point, question or obj_question, super_question, general_question}.
      split: split of the records.
      folder: folder of Visual Genome's pictures.
      drops: takes unusable records.
      sizes: sizes of the pictures, where rows lack img_w and img_h.
      kinds: how the place is shown; "box", "point" or both.
    """
    for number, row in read_lines(Path(path), drops):
        found: list[Dialog] = []
        with drops.guard(f"{path}:{number}"):
            found = list(_about_place(row, number, split, folder, sizes, kinds.split()))
        yield from found


def _about_place(
    row: dict[str, Any], number: int, split: str, folder: str, sizes: Sizes, kinds: list[str]
) -> Iterator[Dialog]:
    name, bbox, point, answer = need(row, "file_path", "bbox", "point", "answer")
    if "img_w" in row and "img_h" in row:
        image = picture(name, folder, row["img_w"], row["img_h"])
    else:
        image = sized_picture(name, folder, sizes)
    region = Region(box=box_xyxy(bbox, image), point=_inside(point, image))
    asked = [key for key in _QUESTIONS if key in row]
    if not asked:
        raise RecordError("V01", f"none of {_QUESTIONS} in the row; is it another file version?")
    answer = words(str(answer), "answer")
    for key in asked:
        for task, kind in (("T10", PromptKind.BOX), ("T11", PromptKind.POINT)):
            if kind.name.lower() not in kinds:
                continue
            turn = turn_of(
                task,
                f"The answer is {answer}.",
                slots={"question": words(row[key], key)},
                prompts=shown(kind, 0),
                references=[answer],
            )
            source = "pointqa_local" if key == "question" else "pointqa_twice"
            uid = (source, split, f"{number}-{key.removesuffix('_question')}")
            yield dialog_of(task, uid, image, [turn], [region], question_kind=key)


def _inside(point: Any, image: MediaRef) -> tuple[float, float]:
    x, y = (point["x"], point["y"]) if isinstance(point, dict) else point
    x, y = float(x), float(y)
    if not (0 <= x <= image.width and 0 <= y <= image.height):
        raise RecordError("V05", f"point {point!r} leaves the picture; correct or drop the row")
    return x, y
