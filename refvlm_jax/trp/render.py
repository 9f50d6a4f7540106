"""Plain answer and spans -> the text a model is trained to write."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from refvlm_jax.trp.spans import PLAN_UNIT, TextSpan, check_spans, closing_order
from refvlm_jax.trp.tokens import (
    PHRASE_CLOSE,
    PHRASE_OPEN,
    REF,
    TASK_CLOSE,
    TASK_OPEN,
    UNIT_CLOSE,
    UNIT_OPEN,
)

PLAN_TRUE = "Unit decode (True). Class name, target unit and number:\n"
PLAN_FALSE = "Unit decode (False).\n"
PLAN_NAME = "- Name: "
PLAN_NUM = " Num: "


@dataclass(frozen=True)
class RenderedAnswer:
    """An answer in wire format."""

    text: str
    order: tuple[int, ...]
    """Span indices in closing order: the first `<REF>`s belong to `spans[order[0]]`, and so on."""


def render_answer(answer: str, spans: Sequence[TextSpan], *, plan: bool = True) -> RenderedAnswer:
    """Writes the plan block and the tagged body; an empty answer renders to an empty text.

    Raises:
      ValueError: the answer or a span breaks the grammar, see `spans.check_spans`.
    """
    check_spans(answer, spans)
    order = tuple(closing_order(spans))
    if not answer:
        return RenderedAnswer("", order)
    body = insert_tags(answer, spans, PHRASE_OPEN, lambda i: PHRASE_CLOSE + group_text(spans[i]))
    head = plan_text(answer, [spans[i] for i in order]) if plan else ""
    return RenderedAnswer(head + body, order)


def plan_text(answer: str, spans: Sequence[TextSpan]) -> str:
    """The planning block for spans already in closing order."""
    lines = "".join(
        f"{PLAN_NAME}{answer[s.start : s.end]}{PLAN_UNIT}{s.unit.text}{PLAN_NUM}{s.count}\n"
        for s in spans
    )
    return f"{TASK_OPEN}\n{PLAN_TRUE if spans else PLAN_FALSE}{lines}{TASK_CLOSE}\n"


def group_text(span: TextSpan) -> str:
    """The group after a phrase: its unit, then one numbered reference a target."""
    refs = "".join(f"[{k}]{REF}" for k in range(span.count))
    return f"({UNIT_OPEN}{span.unit.text}{UNIT_CLOSE}{refs})"


def insert_tags(
    answer: str, spans: Sequence[TextSpan], opening: str, closing: Callable[[int], str]
) -> str:
    """Inserts `opening` at every span start and `closing(index)` at every span end.

    At one position closings stand before openings, inner closings before outer ones and outer
    openings before inner ones, so that nested spans give well-nested tags.
    """
    starts: list[tuple[int, int, int, str]] = [(s.start, 1, -s.end, opening) for s in spans]
    ends = [(s.end, 0, -s.start, closing(i)) for i, s in enumerate(spans)]
    pieces, done = [], 0
    for position, _, _, tag in sorted(starts + ends, key=lambda event: event[:3]):
        pieces += [answer[done:position], tag]
        done = position
    return "".join([*pieces, answer[done:]])
