"""Assembles the structure of an answer from its parts, well-formed or not.

Which phrase and unit references belong to, whatever stands between them: consecutive references
form one group; its unit is the one that closes nearest before them, its phrase the one that closes
nearest before that unit (or before the references, when no unit came in between).
"""

import re
from dataclasses import replace

from refvlm_jax.trp.answer import ParsedAnswer, ParsedGroup, PlanLine, collapse
from refvlm_jax.trp.events import Event, EventKind, join_text
from refvlm_jax.trp.tokens import Unit

_PLAN_LINE = re.compile(r"- Name: (.+?) Unit: (\w+) Num: ([0-9]{1,6})")
_PLAN_FLAG = re.compile(r"Unit decode \((True|False)\)")


class AnswerBuilder:
    """Collects plan, text, phrases and groups, and the events of doing so."""

    def __init__(self):
        self._found = ParsedAnswer()
        self._events: list[Event] = []
        self._parts: list[str] = []  # plain text
        self._length = 0
        self._open_phrases: list[int] = []
        self._phrase: tuple[int, int] | None = None  # closed, waiting for a unit or a reference
        self._next_group: ParsedGroup | None = None  # unit read, waiting for a reference

    @property
    def answer(self) -> ParsedAnswer:
        """Everything collected so far."""
        return replace(self._found, plain=self._plain())

    @property
    def empty(self) -> bool:
        """Whether the body has neither text nor references yet."""
        return not (self._length or self._found.ref_count)

    @property
    def in_phrase(self) -> bool:
        """Whether a phrase is open."""
        return bool(self._open_phrases)

    @property
    def phrase_waits(self) -> bool:
        """Whether a closed phrase has no group yet."""
        return self._phrase is not None

    def open_plan(self) -> bool:
        """Starts the planning block; False when there was one already."""
        if self._found.plan is not None:
            self.warn("second plan")
            return False
        if not self.empty:
            self.warn("plan after the body began")
        self._found.plan = []
        return True

    def plan_line(self, line: str) -> None:
        """Reads one line of the planning block; a blank one means nothing."""
        assert self._found.plan is not None, "plan_line before open_plan"
        line = line.strip()
        if match := _PLAN_LINE.fullmatch(line):
            plan = PlanLine(collapse(match[1]), match[2], int(match[3]))
            self._found.plan.append(plan)
            self._emit(EventKind.PLAN_LINE, plan.name, plan=plan)
        elif (flag := _PLAN_FLAG.match(line)) and self._found.has_plan is None:
            self._found.has_plan = flag[1] == "True"
        elif line:
            self.warn(f"plan line not understood: {line[:80]!r}")

    def text(self, text: str) -> None:
        """Appends plain text."""
        if text:
            self._emit(EventKind.TEXT_DELTA, text)
            self._parts.append(text)
            self._length += len(text)

    def open_phrase(self) -> None:
        """Opens a phrase, possibly inside another one."""
        self._open_phrases.append(self._length)
        self._emit(EventKind.PHRASE_OPEN)

    def close_phrase(self) -> bool:
        """Closes the innermost phrase; False when none is open."""
        if not self._open_phrases:
            self.warn("phrase closed but not opened")
            return False
        self._phrase = (self._open_phrases.pop(), self._length)
        self._next_group = None
        self._emit(EventKind.PHRASE_CLOSE, self._phrase_text(self._phrase))
        return True

    def unit(self, name: str) -> None:
        """Reads a unit name: the next reference starts a group of this unit."""
        self._next_group = self._new_group(name)
        if self._next_group.unit is None:
            self.warn(f"unknown unit {name!r}")
        self._emit(EventKind.UNIT, name, group=len(self._found.groups))

    def ref(self, index: int | None) -> None:
        """Adds a reference to the group it belongs to."""
        group = self._group_of_ref()
        if index is None:
            self.warn("reference without an index")
        else:
            group.indices.append(index)
        group.ref_count += 1
        self._found.ref_count += 1
        self._emit(EventKind.REF, group=len(self._found.groups) - 1, index=index)

    def close_group(self) -> None:
        """Ends the current group; a later reference without phrase or unit reopens it."""
        if self._next_group is not None:
            self.warn("unit without a reference")
        else:
            self._emit(EventKind.GROUP_CLOSE, group=len(self._found.groups) - 1)

    def warn(self, text: str) -> None:
        """Notes a departure from the grammar."""
        self._found.warnings.append(text)
        self._emit(EventKind.WARNING, text)

    def end(self) -> None:
        """Ends the answer."""
        if self._open_phrases:
            self.warn("phrase is not closed")
        self._emit(EventKind.END)

    def take_events(self) -> list[Event]:
        """The events since the last call, adjacent text joined."""
        events, self._events = self._events, []
        return join_text(events)

    def _group_of_ref(self) -> ParsedGroup:
        groups = self._found.groups
        if self._next_group is None and self._phrase is None and groups:
            return groups[-1]
        group = self._next_group or self._new_group("")
        group.first_ref = self._found.ref_count
        self._next_group = None
        groups.append(group)
        return group

    def _new_group(self, unit_text: str) -> ParsedGroup:
        start, end = self._phrase or (self._length, self._length)
        phrase = None if self._phrase is None else self._phrase_text(self._phrase)
        self._phrase = None  # used up
        return ParsedGroup(phrase, start, end, Unit.from_text(unit_text), unit_text)

    def _phrase_text(self, bounds: tuple[int, int]) -> str:
        return collapse(self._plain()[slice(*bounds)])

    def _plain(self) -> str:
        self._parts = ["".join(self._parts)]
        return self._parts[0]

    def _emit(
        self,
        kind: EventKind,
        text: str = "",
        *,
        group: int = -1,
        index: int | None = None,
        plan: PlanLine | None = None,
    ) -> None:
        self._events.append(Event(kind, text, self._length, group, index, plan))
