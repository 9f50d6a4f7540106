"""Building records: the task type a source is meant for, turns, and phrases with their targets."""

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.records import Dialog, MediaRef, Prompt, PromptKind, Region, Span, Turn
from data_pipelines.sources.base import RecordError
from data_pipelines.tasks import TASKS, TaskSpec
from refvlm_jax.trp.tokens import IMAGE_SLOT, Unit

NEAREST = {"LCL": "T03"}
"""What stands in for a task type that `tasks.TASKS` lacks: samples of link-context learning (LCL) are
questions until an episode is put together from them."""


def task_of(wanted: str) -> TaskSpec:
    """The task type `wanted` or, where it does not exist, the nearest one."""
    return TASKS[wanted] if wanted in TASKS else TASKS[NEAREST[wanted]]


def dialog_of(
    wanted: str,
    uid: tuple[str, str, Any],
    image: MediaRef | None,
    turns: Sequence[Turn],
    regions: Sequence[Region] = (),
    flags: Sequence[str] = (),
    **provenance: Any,
) -> Dialog:
    """A dialogue of task type `wanted`; one that the nearest type stands in for says so.

    Args:
      wanted: the task type the source is meant for.
      uid: source, split, and an id that is unique in them for the task type.
      image: its picture.
      turns: questions and answers.
      regions: what they refer to.
      flags: see `Dialog.flags`.
      provenance: native ids and what a scorer needs.
    """
    source, split, native = uid
    task = task_of(wanted).id
    return Dialog(
        uid=f"{source}/{split}/{native}/{wanted}",
        source=source,
        split=split,
        task_id=task,
        image=image,
        regions=list(regions),
        turns=list(turns),
        flags=list(flags),
        provenance=provenance if task == wanted else provenance | {"wanted_task": wanted},
    )


def turn_of(
    wanted: str,
    answer: str,
    *,
    question: str = "",
    slots: Mapping[str, str] | None = None,
    prompts: Sequence[Prompt] = (),
    spans: Sequence[Span] = (),
    references: Sequence[str] = (),
) -> Turn:
    """A turn of task type `wanted`; its question is `question` itself, else from the task's bank."""
    spec = task_of(wanted)
    return Turn(
        task_name=spec.command,
        bank="" if question else spec.bank,
        slots=dict(slots or {}),
        literal=question,
        answer=answer,
        prompts=list(prompts),
        spans=list(spans),
        references=list(references),
    )


def shown(kind: PromptKind, *regions: int) -> list[Prompt]:
    """The regions as prompts of one kind."""
    return [Prompt(region=k, kind=kind) for k in regions]


def phrase_turn(
    wanted: str, phrase: str, targets: Sequence[int], *, unit: Unit | None = None, **rest: Any
) -> Turn:
    """A turn whose answer is one phrase with its targets; `rest` as `turn_of`."""
    span = Span(start=0, end=len(phrase), unit=unit or task_of(wanted).unit, targets=list(targets))
    return turn_of(wanted, f"{phrase}.", spans=[span], **rest)


def words(value: Any, what: str, code: str = "V03") -> str:
    """A text field without superfluous blanks; it must be a string that says something."""
    text = " ".join(value.split()) if isinstance(value, str) else ""
    if not text:
        raise RecordError(code, f"{what} {value!r:.60} is no text; correct or remove the record")
    return text


def text_range(text: Any, place: Any) -> tuple[int, int]:
    """A checked character range [start, end] of a text."""
    if not isinstance(text, str) or not text.strip():
        raise RecordError("V03", f"caption {text!r:.60} is no text; correct or remove the record")
    start, end = place
    whole = all(type(k) is int for k in (start, end))
    if not whole or not 0 <= start < end <= len(text) or not text[start:end].strip():
        raise RecordError("V20", f"range {place!r} holds no text of the caption; correct it")
    return start, end


def without_image_mark(text: str) -> str:
    """A conversation's text without its image marker and the blanks around it; line ends stay."""
    text = re.sub(rf"\s*{re.escape(IMAGE_SLOT)}\s*", "\n", text)
    return re.sub(r"[^\S\n]+", " ", text).strip()


_ENDINGS = "(?:s|t|re|ve|ll|m|d)"
_LOOSE = re.compile(
    rf" (?=[.,;:!?](?:\s|$)|'{_ENDINGS}\b|' {_ENDINGS}\b|n't\b)|(?<= ') (?={_ENDINGS}\b)"
)


def tighten(text: str, ranges: Sequence[tuple[int, int]]) -> tuple[str, list[tuple[int, int]]]:
    """A tokenised sentence without the blanks before punctuation, and ranges of it moved along.

    "a dog 's tail ." -> "a dog's tail."
    """
    gone = [match.start() for match in _LOOSE.finditer(text)]
    moved = [(s - bisect_left(gone, s), e - bisect_left(gone, e)) for s, e in ranges]
    return _LOOSE.sub("", text), moved
