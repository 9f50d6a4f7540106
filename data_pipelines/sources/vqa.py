"""VQAv2-style question rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.records import Dialog, Turn
from data_pipelines.sources.base import Drops, RecordError, need, picture, read_lines
from data_pipelines.sources.sizes import Sizes
from data_pipelines.tasks import TASKS


def questions(path: Path, split: str, folder: str, drops: Drops, sizes: Sizes) -> Iterator[Dialog]:
    """T03 of every row {image_path, question, question_id, annotation}.

    Args:
      sizes: width and height by file name, which these rows do not carry.
    """
    for number, row in read_lines(path, drops):
        found: list[Dialog] = []
        with drops.guard(f"{path}:{number}"):
            found = [_dialog(row, split, folder, sizes)]
        yield from found


def _dialog(row: dict[str, Any], split: str, folder: str, sizes: Sizes) -> Dialog:
    name, question, question_id, note = need(
        row, "image_path", "question", "question_id", "annotation"
    )
    if name not in sizes:
        raise RecordError("V02", f"picture {name} is not in the image list; add it or drop the row")
    (answer,) = need(note, "multiple_choice_answer")
    spec = TASKS["T03"]
    width, height = sizes[name]
    return Dialog(
        uid=f"vqa/{split}/{question_id}/T03",
        source="vqa",
        split=split,
        task_id="T03",
        image=picture(name, folder, width, height),
        turns=[
            Turn(
                task_name=spec.command,
                bank=spec.bank,
                slots={"question": " ".join(question.split())},
                answer=f"The answer is {answer}.",
                references=[item["answer"] for item in note.get("answers", [])] or [answer],
            )
        ],
        provenance={"question_id": question_id, "image_id": row.get("image_id", 0)},
    )
