"""VCR: questions about people and things that are tagged in a film still, with a rationale."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipelines.records import Dialog, MediaRef, PromptKind, Region, Span, Turn
from data_pipelines.sources.base import (
    Drops,
    RecordError,
    box_xyxy,
    need,
    picture,
    read_json,
    read_lines,
)
from data_pipelines.sources.dialogs import dialog_of, shown, tighten, turn_of, words
from data_pipelines.tasks import TASKS
from refvlm_jax.trp.tokens import PROMPT_SLOT, Unit


def vcr(
    path: Path, split: str, folder: str, drops: Drops, *, metadata: str = ""
) -> Iterator[Dialog]:
    """X1 of every question: answer and rationale, tagged objects shown and boxed; and X4: the
    answer first, then its reason when asked.

    Where answer and rationale mention no object there is no X4, and X1 is a T10 or, with none in
    the question either, a T04.

    Args:
      path: `train.jsonl` or `val.jsonl`; test rows hold no labels.
      split: split of the records.
      folder: folder of the pictures, `vcr1images`.
      drops: takes unusable records.
      metadata: where `metadata_fn` lies; `vcr1images` beside `path` by default.
    """
    path = Path(path)
    root = Path(metadata) if metadata else path.with_name("vcr1images")
    for number, row in read_lines(path, drops):
        found: list[Dialog] = []
        with drops.guard(f"{path}:{number}"):
            found = _dialogs(row, number, split, folder, root)
        yield from found


def _dialogs(row: dict[str, Any], number: int, split: str, folder: str, root: Path) -> list[Dialog]:
    asked, names, name = need(row, "question", "objects", "img_fn")
    said, why = _right(row, "answer"), _right(row, "rationale")
    image, boxes = _picture(row, name, folder, root)
    if len(boxes) != len(names):
        raise RecordError("V10", f"{len(names)} objects, {len(boxes)} boxes; they must agree")
    tags = [f"{words(kind, 'object')}{k + 1}" for k, kind in enumerate(names)]
    regions = [
        Region(category=kind, box=box_xyxy(box[:4], image))
        for kind, box in zip(names, boxes, strict=True)
    ]
    question, prompts = _question(asked, tags)
    first: dict[str, Any] = {"question": question, "prompts": shown(PromptKind.BOX, *prompts)}
    answer, spans = _said(said + why, tags)
    wanted = "X1" if spans else "T10" if prompts else "T04"
    turn = turn_of(wanted, answer, spans=spans, references=[answer], **first)
    known = {"native_id": row.get("annot_id", ""), "img_fn": name}
    uid = ("vcr", split, row.get("annot_id", number))
    found = [dialog_of(wanted, uid, image, [turn], regions, **known)]
    if spans:
        steps = [_step(said, tags, **first), _step(why, tags)]
        found.append(dialog_of("X4", uid, image, steps, regions, **known))
    return found


def _step(tokens: list[Any], tags: list[str], **asked: Any) -> Turn:
    """A turn of X4; one that mentions no object is plain text, as its command then says."""
    text, spans = _said(tokens, tags)
    turn = turn_of("X4", text, spans=spans, references=[text], **asked)
    return turn if spans else replace(turn, task_name=TASKS["T04"].command)


def _right(row: dict[str, Any], what: str) -> list[Any]:
    choices, label = need(row, f"{what}_choices", f"{what}_label")
    if not 0 <= label < len(choices):
        raise RecordError("V01", f"{what}_label {label} of {len(choices)} choices; correct it")
    return list(choices[label])


def _picture(
    row: dict[str, Any], name: str, folder: str, root: Path
) -> tuple[MediaRef, list[list[float]]]:
    """The picture and the boxes of its objects, which stand in a file of their own."""
    if {"boxes", "width", "height"} <= row.keys():
        found = row
    else:
        path = root / need(row, "metadata_fn")[0]
        if not path.is_file():
            raise RecordError("V01", f"{path} is missing; unpack vcr1images.zip there")
        found = read_json(path, keys=("boxes", "width", "height"))
    return picture(name, folder, found["width"], found["height"]), found["boxes"]


def _joined(tokens: list[Any], tags: list[str]) -> tuple[str, list[tuple[int, int, list[int]]]]:
    """Tokens as text, and the range of every tag (a nested list of object numbers)."""
    text, places = "", []
    for token in tokens:
        text += " " if text else ""
        if isinstance(token, list):
            if not token or not all(type(k) is int and 0 <= k < len(tags) for k in token):
                raise RecordError("V10", f"tag {token!r} is none of {len(tags)} objects; drop it")
            unique = list(dict.fromkeys(token))
            named = " and ".join(tags[k] for k in unique)
            places.append((len(text), len(text) + len(named), unique))
            text += named
        else:
            text += str(token)
    return text, places


def _said(tokens: list[Any], tags: list[str]) -> tuple[str, list[Span]]:
    """Tokens as an answer whose tags are phrases."""
    text, places = _joined(tokens, tags)
    tight, moved = tighten(words(text, "answer"), [(s, e) for s, e, _ in places])
    return tight, [
        Span(start=start, end=end, unit=Unit.BOX, targets=targets)
        for (start, end), (_, _, targets) in zip(moved, places, strict=True)
    ]


def _question(tokens: list[Any], tags: list[str]) -> tuple[str, list[int]]:
    """The question with a prompt behind the first mention of every object."""
    text, places = _joined(tokens, tags)
    prompts: list[int] = []
    pieces, last = [], 0
    for _, end, objects in places:
        new = [k for k in objects if k not in prompts]
        prompts += new
        pieces.append(text[last:end] + f" {PROMPT_SLOT}" * len(new))
        last = end
    return tighten(words("".join(pieces) + text[last:], "question"), [])[0], prompts
