"""RefCOCO-style expression rows: comprehension, segmentation, and region captions in reverse."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.records import Dialog, Prompt, PromptKind, Region, Span, Turn
from data_pipelines.sources.base import (
    Drops,
    RecordError,
    box_xyxy,
    mask_of,
    need,
    picture,
    read_lines,
)
from data_pipelines.tasks import TASKS

TARGET = "target"
"""The phrase of every answer, as in the reference; the expression stands in the question."""


def expressions(
    path: Path, split: str, folder: str, drops: Drops, *, phrase: str = TARGET
) -> Iterator[Dialog]:
    """T17, T18, T06 and T07 of every row {img_path, expression, bbox, mask, height, width}.

    Args:
      phrase: "target", or "expression" to repeat the expression as the phrase.
    """
    for number, row in read_lines(path, drops):
        found: list[Dialog] = []
        with drops.guard(f"{path}:{number}"):
            found = list(_dialogs(row, number, split, folder, phrase))
        yield from found


def _dialogs(
    row: dict[str, Any], number: int, split: str, folder: str, phrase: str
) -> Iterator[Dialog]:
    name, expression, bbox, segmentation, height, width = need(
        row, "img_path", "expression", "bbox", "mask", "height", "width"
    )
    expression = " ".join(str(expression).split())
    if not expression:
        raise RecordError("V18", "empty expression; remove the row")
    image = picture(name, folder, width, height)
    found = Region(box=box_xyxy(bbox, image), mask=mask_of(segmentation, image))
    ids: dict[str, Any] = {k: row[k] for k in ("image_id", "ann_id", "ref_id") if k in row}
    written = TARGET if phrase == TARGET else expression
    for task in ("T17", "T18", "T06", "T07"):
        yield Dialog(
            uid=f"refcoco/{split}/{number}/{task}",
            source="refcoco",
            split=split,
            task_id=task,
            image=image,
            regions=[found],
            turns=[_turn(task, expression, written)],
            provenance=ids,
        )


def _turn(task: str, expression: str, written: str) -> Turn:
    spec = TASKS[task]
    if spec.prompts:
        prompt = Prompt(region=0, kind=PromptKind.BOX if task == "T06" else PromptKind.MASK)
        return Turn(task_name=spec.command, bank=spec.bank, answer=expression, prompts=[prompt])
    span = Span(start=0, end=len(written), unit=spec.unit, targets=[0])
    return Turn(
        task_name=spec.command,
        bank=spec.bank,
        slots={"expr": expression},
        answer=f"{written}.",
        spans=[span],
    )
