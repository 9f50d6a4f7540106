"""VQA-E and VQA-X: questions whose answers come with a reason."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.records import Dialog
from data_pipelines.sources.base import (
    Drops,
    RecordError,
    SourceError,
    need,
    read_json,
    read_lines,
)
from data_pipelines.sources.dialogs import dialog_of, turn_of, words
from data_pipelines.sources.sizes import Sizes, sized_picture


def vqa_e(path: Path, split: str, folder: str, drops: Drops, sizes: Sizes) -> Iterator[Dialog]:
    """T04 of every row {img_id, question, multiple_answers, explanation: [text, score]}.

    Args:
      path: `VQA-E_{split}_set.json`, a list, or the same rows as JSON lines with `file_path`.
      split: train or val, which names COCO's 2014 pictures.
      folder: folder of the pictures.
      drops: takes unusable records.
      sizes: sizes of the pictures.
    """
    for where, number, row in _rows(Path(path), drops):
        found: list[Dialog] = []
        with drops.guard(where):
            question, answer, explained = need(row, "question", "multiple_answers", "explanation")
            reason = explained[0] if isinstance(explained, list) else explained
            name = row.get("file_path") or f"COCO_{split}2014_{need(row, 'img_id')[0]:012d}.jpg"
            uid = ("vqa_e", split, number)
            texts = (question, answer, [reason])
            found = [_dialog(uid, texts, sized_picture(name, folder, sizes), row.get("img_id", 0))]
        yield from found


def vqa_x(path: Path, split: str, folder: str, drops: Drops, sizes: Sizes) -> Iterator[Dialog]:
    """T04 of every question, with its first explanation; all of them are references.

    Args:
      path: `vqaX_{split}.json`, an object {question_id: {question, image_name, answers,
        explanation}}, or JSON lines with `file_path`, `justification`, `multiple_choice_answer`.
      split: split of the records.
      folder: folder of the pictures.
      drops: takes unusable records.
      sizes: sizes of the pictures.
    """
    for where, number, row in _rows(Path(path), drops):
        found: list[Dialog] = []
        with drops.guard(where):
            (question,) = need(row, "question")
            name = row.get("file_path") or need(row, "image_name")[0]
            reasons = row["justification"] if "justification" in row else row["explanation"]
            texts = (question, _most_common(row), reasons)
            uid = ("vqa_x", split, number)
            image = sized_picture(name, folder, sizes)
            found = [_dialog(uid, texts, image, row.get("image_id", 0))]
        yield from found


def _rows(path: Path, drops: Drops) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Every row with how errors name it and its own id."""
    if path.suffix == ".jsonl":
        for number, row in read_lines(path, drops):
            yield f"{path}:{number}", row.get("question_id", number), row
        return
    content = read_json(path)
    if isinstance(content, list):
        for number, row in enumerate(content):
            yield f"{path}, row {number}", number, row
    elif isinstance(content, dict):
        for key, row in content.items():
            yield f"{path}, question {key}", key, row
    else:
        raise SourceError(f"{path}: neither a list nor an object; is it another file version?")


def _most_common(row: dict[str, Any]) -> str:
    if "multiple_choice_answer" in row:
        return row["multiple_choice_answer"]
    answers = [item["answer"] for item in need(row, "answers")[0]]
    if not answers:
        raise RecordError("V03", "no answers; remove the row")
    return Counter(answers).most_common(1)[0][0]


def _dialog(uid: tuple[str, str, Any], texts: Any, image: Any, image_id: Any) -> Dialog:
    question, answer, reasons = texts
    answer = words(answer, "answer")
    explained = [_sentence(words(r, "explanation")) for r in reasons]
    if not explained:
        raise RecordError("V03", "no explanation; remove the row")
    whole = [f"{reason} So the answer is {answer}." for reason in explained]
    slots = {"question": words(question, "question")}
    turn = turn_of("T04", whole[0], slots=slots, references=whole)
    known: dict[str, Any] = {"image_id": int(image_id), "answer": answer}
    return dialog_of("T04", uid, image, [turn], **known)


def _sentence(text: str) -> str:
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".!?" else f"{text}."
