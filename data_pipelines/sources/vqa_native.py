"""VQAv2 and OK-VQA as published (questions and annotations apart), and POPE."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.records import Dialog
from data_pipelines.sources.base import Drops, RecordError, need, read_json, read_lines
from data_pipelines.sources.dialogs import dialog_of, turn_of, words
from data_pipelines.sources.sizes import Sizes, sized_picture


def vqa_v2(
    path: Path, split: str, folder: str, drops: Drops, sizes: Sizes, *, annotations: str = ""
) -> Iterator[Dialog]:
    """T03 of every question; those of a test split have no answer and are for evaluation only.

    Args:
      path: `v2_OpenEnded_mscoco_{train2014,val2014,test-dev2015,test2015}_questions.json`.
      split: split of the records.
      folder: folder of the pictures of the file's COCO split.
      drops: takes unusable records.
      sizes: sizes of the pictures.
      annotations: `v2_mscoco_*_annotations.json`; the one beside `path` by default.
    """
    return _questions(path, split, folder, drops, sizes, annotations, "vqa_v2")


def okvqa(
    path: Path, split: str, folder: str, drops: Drops, sizes: Sizes, *, annotations: str = ""
) -> Iterator[Dialog]:
    """T03 of every question of `OpenEnded_mscoco_{split}2014_questions.json`; as `vqa_v2`."""
    return _questions(path, split, folder, drops, sizes, annotations, "okvqa")


def _questions(
    path: Path, split: str, folder: str, drops: Drops, sizes: Sizes, annotations: str, source: str
) -> Iterator[Dialog]:
    path = Path(path)
    content = read_json(path, keys=("questions", "data_subtype"))
    subtype = str(content["data_subtype"])
    notes: dict[Any, Any] | None = None
    if not subtype.startswith("test"):
        name = path.name.replace("OpenEnded_", "").replace("_questions", "_annotations")
        notes = _notes(Path(annotations) if annotations else path.with_name(name), drops)
    for place, row in enumerate(content["questions"]):
        found: list[Dialog] = []
        with drops.guard(f"{path}, question {_number(row, place)}"):
            found = [_dialog(row, notes, subtype, (source, split), folder, sizes)]
        yield from found


def _number(row: Any, place: int) -> str:
    known = isinstance(row, dict) and "question_id" in row
    return str(row["question_id"]) if known else f"at index {place}"


def _notes(path: Path, drops: Drops) -> dict[Any, Any]:
    found = {}
    for place, row in enumerate(read_json(path, keys=("annotations",))["annotations"]):
        with drops.guard(f"{path}, annotation at index {place}"):
            found[need(row, "question_id")[0]] = row
    return found


def _dialog(
    row: dict[str, Any],
    notes: dict[Any, Any] | None,
    subtype: str,
    named: tuple[str, str],
    folder: str,
    sizes: Sizes,
) -> Dialog:
    question, number, image_id = need(row, "question", "question_id", "image_id")
    # The development questions of the test split are about its pictures.
    name = f"COCO_{subtype.replace('-dev', '')}_{image_id:012d}.jpg"
    image = sized_picture(name, folder, sizes)
    answer = ""
    answers: list[str] = []
    if notes is not None:
        if number not in notes:
            raise RecordError(
                "V03", f"question {number} has no annotation; take both files of one version"
            )
        answer, answers = _answers(notes[number])
    turn = turn_of(
        "T03",
        f"The answer is {answer}." if answer else "",
        slots={"question": words(question, "question")},
        references=answers,
    )
    flags = [] if answer else ["eval_only", "empty_target"]
    known = {"image_id": image_id, "question_id": number}
    return dialog_of("T03", (*named, number), image, [turn], (), flags, **known)


def _answers(note: dict[str, Any]) -> tuple[str, list[str]]:
    """The answer to learn, and all ten; OK-VQA names no most frequent one."""
    answers = [words(item["answer"], "answer") for item in need(note, "answers")[0]]
    if "multiple_choice_answer" in note:
        return words(note["multiple_choice_answer"], "answer"), answers
    if not answers:
        raise RecordError("V03", "no answers; remove the annotation")
    return Counter(answers).most_common(1)[0][0], answers


def pope(path: Path, split: str, folder: str, drops: Drops, sizes: Sizes) -> Iterator[Dialog]:
    """T03 of every row {question_id, image, text, label}, for evaluation only.

    Args:
      path: `coco_pope_random.json`, `coco_pope_popular.json` or `coco_pope_adversarial.json`, which
        are JSON lines.
      split: split of the records.
      folder: folder of COCO's 2014 validation pictures.
      drops: takes unusable records.
      sizes: sizes of the pictures.
    """
    path = Path(path)
    kind = path.stem.rsplit("_", 1)[-1]
    for number, row in read_lines(path, drops):
        found: list[Dialog] = []
        with drops.guard(f"{path}:{number}"):
            name, text, label = need(row, "image", "text", "label")
            if label not in ("yes", "no"):
                raise RecordError("V03", f"label {label!r} is neither yes nor no; correct it")
            turn = turn_of(
                "T03",
                f"The answer is {label}.",
                slots={"question": words(text, "question")},
                references=[label],
            )
            image = sized_picture(name, folder, sizes)
            known = {"question_id": row.get("question_id", number), "kind": kind}
            uid = ("pope", split, f"{kind}-{number}")
            found = [dialog_of("T03", uid, image, [turn], (), ["eval_only"], **known)]
        yield from found
