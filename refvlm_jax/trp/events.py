"""Events of an answer that is being read, for viewers that follow the generation."""

import enum
from collections.abc import Iterable
from dataclasses import dataclass, replace

from refvlm_jax.trp.answer import PlanLine


class EventKind(enum.StrEnum):
    """What happened in the answer."""

    PLAN_LINE = "plan_line"
    PHRASE_OPEN = "phrase_open"
    PHRASE_CLOSE = "phrase_close"
    UNIT = "unit"
    REF = "ref"
    GROUP_CLOSE = "group_close"
    TEXT_DELTA = "text_delta"
    WARNING = "warning"
    END = "end"


@dataclass(frozen=True)
class Event:
    """One step of an answer."""

    kind: EventKind
    text: str = ""
    """New plain text, plan name, phrase, unit name or warning, by kind."""
    offset: int = 0
    """Length of the plain text before the event."""
    group: int = -1
    """Number of the group, for unit, ref and group_close."""
    index: int | None = None
    """The number written before a reference, if any."""
    plan: PlanLine | None = None
    """The line of a plan_line event."""


def join_text(events: Iterable[Event]) -> list[Event]:
    """`events` with adjacent text deltas joined: independent of how the text was cut."""
    joined: list[Event] = []
    for event in events:
        if joined and event.kind is joined[-1].kind is EventKind.TEXT_DELTA:
            joined[-1] = replace(joined[-1], text=joined[-1].text + event.text)
        else:
            joined.append(event)
    return joined
