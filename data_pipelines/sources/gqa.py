"""GQA: questions made from scene graphs of photographs."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.records import Dialog, MediaRef, Region, Span
from data_pipelines.sources.base import (
    Drops,
    RecordError,
    SourceError,
    box_xywh,
    need,
    read_json,
)
from data_pipelines.sources.dialogs import dialog_of, turn_of, words
from data_pipelines.sources.sizes import Sizes, sized_picture
from refvlm_jax.trp.tokens import Unit

_VERDICT = re.compile(r"^(?:Yes|No),\s*")


def gqa(
    path: Path, split: str, folder: str, drops: Drops, sizes: Sizes, *, scene_graphs: str = ""
) -> Iterator[Dialog]:
    """T03 of every question and T04 of those with a full answer; with scene graphs X1, that answer
    with its objects boxed.

    Args:
      path: `{split}_balanced_questions.json`, an object by question id.
      split: split of the records.
      folder: folder of the pictures.
      drops: takes unusable records.
      sizes: sizes of the pictures.
      scene_graphs: `{split}_sceneGraphs.json`; the one beside `path` by default, if it is there.
    """
    path = Path(path)
    questions = read_json(path)
    if not isinstance(questions, dict):
        raise SourceError(f"{path}: no object by question id; is it another file version?")
    beside = Path(scene_graphs) if scene_graphs else path.with_name(f"{split}_sceneGraphs.json")
    graphs = read_json(beside) if scene_graphs or beside.is_file() else {}
    for number, row in questions.items():
        found: list[Dialog] = []
        with drops.guard(f"{path}, question {number}"):
            found = list(_gqa_dialogs(row, (split, number), folder, sizes, graphs))
        yield from found


def _gqa_dialogs(
    row: dict[str, Any], named: tuple[str, str], folder: str, sizes: Sizes, graphs: dict[str, Any]
) -> Iterator[Dialog]:
    question, answer, image_id = need(row, "question", "answer", "imageId")
    question, answer = words(question, "question"), words(answer, "answer")
    graph = graphs.get(image_id) or {}
    image = sized_picture(f"{image_id}.jpg", folder, sizes)
    known: dict[str, Any] = {"question_id": named[1], "native_id": image_id}
    short = turn_of(
        "T03", f"The answer is {answer}.", slots={"question": question}, references=[answer]
    )
    yield dialog_of("T03", ("gqa", *named), image, [short], **known)
    slots = {"question": question}
    if row.get("fullAnswer"):
        text = f"{words(row['fullAnswer'], 'full answer')} So the answer is {answer}."
        reason = turn_of("T04", text, slots=slots, references=[text])
        yield dialog_of("T04", ("gqa", *named), image, [reason], **known)
    noted = row.get("annotations", {}).get("fullAnswer") or {}
    if noted and graph:
        full, regions, spans = _grounded(row["fullAnswer"], noted, graph["objects"], image)
        text = f"{full} So the answer is {answer}."
        turn = turn_of("X1", text, slots=slots, spans=spans)
        yield dialog_of("X1", ("gqa", *named), image, [turn], regions, **known)


def _grounded(
    sentence: str, noted: dict[str, str], objects: dict[str, Any], image: MediaRef
) -> tuple[str, list[Region], list[Span]]:
    """The sentence, with the words that `noted` ties to objects ("2" or "2:4" -> "id,id")."""
    # Words are counted after the verdict, which therefore goes; the answer repeats it.
    full = _VERDICT.sub("", words(sentence, "full answer"))
    places = [match.span() for match in re.finditer(r"\S+", full)]
    regions: list[Region] = []
    row_of: dict[str, int] = {}
    spans = []
    for words_at, ids in noted.items():
        at, _, behind = words_at.partition(":")
        first, last = int(at), int(behind or int(at) + 1)
        if not 0 <= first < last <= len(places):
            raise RecordError("V20", f"words {words_at!r} are not in {full!r}; correct the row")
        for key in ids.split(","):
            if key not in row_of:
                x, y, w, h = need(objects[key], "x", "y", "w", "h")
                row_of[key] = len(regions)
                regions.append(
                    Region(category=objects[key].get("name", ""), box=box_xywh([x, y, w, h], image))
                )
        start, end = places[first][0], places[last - 1][1]
        end = start + len(full[start:end].rstrip(".,;:!?"))
        targets = list(dict.fromkeys(row_of[key] for key in ids.split(",")))
        spans.append(Span(start=start, end=end, unit=Unit.BOX, targets=targets))
    return f"{full[0].upper()}{full[1:]}", regions, spans
