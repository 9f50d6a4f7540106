"""Spans: the structured form of an answer, before it is written in the wire format."""

from collections.abc import Sequence
from dataclasses import dataclass

from refvlm_jax.trp.tokens import RESERVED, Unit

# A Llama-style tokenizer reads these as begin and end of sequence wherever they stand.
CONTROL_TEXT = ("<s>", "</s>")
MAX_PHRASE = 200  # code points
PLAN_UNIT = " Unit: "  # separates name and unit in a plan line


@dataclass(frozen=True)
class TextSpan:
    """`answer[start:end]` is a phrase decoded by `unit` into `count` references.

    Offsets count Unicode code points of the plain answer.
    """

    start: int
    end: int
    unit: Unit
    count: int


def closing_order(spans: Sequence[TextSpan]) -> list[int]:
    """Indices of the spans by closing tag, inner before outer: the order of plan lines and refs."""
    return sorted(range(len(spans)), key=lambda i: (spans[i].end, -spans[i].start))


def check_free_text(text: str, where: str) -> None:
    """Raises ValueError when `text` contains a string that would be read as structure."""
    for reserved in (*RESERVED, *CONTROL_TEXT):
        if reserved in text:
            raise ValueError(
                f"{where} contains the reserved string {reserved!r} at offset "
                f"{text.index(reserved)}: remove or reword it"
            )


def check_spans(text: str, spans: Sequence[TextSpan]) -> None:
    """Checks an answer and its spans against the static constraints of the grammar.

    Spans may nest or be disjoint; their order in `spans` is free.

    Raises:
      ValueError: a reserved string in the answer, or a span that is out of range, crosses or
        repeats another one, has no unit or no reference, or holds text no plan line can carry.
    """
    check_free_text(text, "answer")
    for number, span in enumerate(spans):
        _check_span(text, span, f"span {number} [{span.start}, {span.end})")
    _check_nesting(spans)


def _check_span(text: str, span: TextSpan, where: str) -> None:
    if not 0 <= span.start < span.end <= len(text):
        raise ValueError(f"{where}: need 0 <= start < end <= {len(text)}, the answer's length")
    if span.unit is Unit.NONE or span.unit not in tuple(Unit):
        raise ValueError(f"{where}: unit {span.unit!r} decodes to nothing; use box, mask, ...")
    if span.count < 1:
        raise ValueError(f"{where}: {span.count} references; a phrase needs at least one target")
    check_phrase(text[span.start : span.end], where)


def check_phrase(phrase: str, where: str) -> None:
    """Raises ValueError when a phrase is blank or too long, or no plan line can carry it."""
    if not phrase.strip():
        raise ValueError(f"{where}: the phrase is blank")
    if len(phrase) > MAX_PHRASE:
        raise ValueError(f"{where}: phrase of {len(phrase)} characters, at most {MAX_PHRASE}")
    if "\n" in phrase or "\r" in phrase:
        raise ValueError(f"{where}: newline in phrase {phrase!r}; a plan line holds one line")
    if PLAN_UNIT in phrase:
        raise ValueError(
            f"{where}: phrase {phrase!r} contains {PLAN_UNIT!r}, which ends a plan name"
        )


def _check_nesting(spans: Sequence[TextSpan]) -> None:
    open_spans: list[int] = []
    for i in sorted(range(len(spans)), key=lambda i: (spans[i].start, -spans[i].end)):
        while open_spans and spans[open_spans[-1]].end <= spans[i].start:
            open_spans.pop()
        if open_spans:
            _check_inside(spans, i, open_spans[-1])
        open_spans.append(i)


def _check_inside(spans: Sequence[TextSpan], inner: int, outer: int) -> None:
    a, b = spans[inner], spans[outer]
    where = f"spans {outer} [{b.start}, {b.end}) and {inner} [{a.start}, {a.end})"
    if (a.start, a.end) == (b.start, b.end):
        raise ValueError(f"{where}: identical ranges; merge their targets into one span")
    if a.end > b.end:
        raise ValueError(f"{where}: ranges cross; spans must nest or be disjoint")
