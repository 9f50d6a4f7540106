"""Incremental parser of a written answer: a state machine that never raises.

States in the order of the grammar:
START -> PLAN -> AFTER_PLAN -> BODY -> AFTER_PHRASE -> UNIT -> REFS -> BODY.

Every decision depends on the text alone, never on how it is cut into pieces. Malformed text gives
warnings and best-effort groups, see `builder`.
"""

import enum
import re
from collections.abc import Callable

from refvlm_jax.trp.answer import ParsedAnswer
from refvlm_jax.trp.builder import AnswerBuilder
from refvlm_jax.trp.events import Event, EventKind, join_text
from refvlm_jax.trp.scan import TAGS, TagScanner
from refvlm_jax.trp.tokens import (
    PHRASE_CLOSE,
    PHRASE_OPEN,
    REF,
    TASK_CLOSE,
    TASK_OPEN,
    UNIT_CLOSE,
    UNIT_OPEN,
)

__all__ = ["Event", "EventKind", "StreamParser", "join_text"]

END_OF_ANSWER = "</s>"
_MAX_UNIT = 32  # characters of a unit name; anything longer is text after a stray tag

# Whitespace is tolerated around tags because Llama decoders put it there. All counts are bounded,
# so that an endless run of blanks is not held back. Each pattern accepts every prefix of what it
# accepts: waiting for more text can therefore never change a decision already taken.
_INDEX = r"\[\s{0,4}[0-9]{0,6}\s{0,4}\]?\s{0,8}"
_LEADING = re.compile(r"\s{0,16}")
_PLAN_END = re.compile(r"[ \t]{0,16}\n?")
_GROUP_START = re.compile(rf"\s{{0,8}}\(?\s{{0,8}}(?:{_INDEX})?")
_BRACKET_TAIL = re.compile(rf"\(\s{{0,8}}|{_INDEX}")
_REF_START = re.compile(rf"\s{{0,8}}(?:{_INDEX})?")
_GROUP_END = re.compile(r"\s{0,8}\)")
_FULL_INDEX = re.compile(r"\[\s*([0-9]+)\s*\]\s*\Z")


class _State(enum.Enum):
    START = enum.auto()
    PLAN = enum.auto()
    AFTER_PLAN = enum.auto()
    BODY = enum.auto()
    AFTER_PHRASE = enum.auto()
    UNIT = enum.auto()
    REFS = enum.auto()
    ENDED = enum.auto()


class StreamParser:
    """Reads an answer piece by piece; `answer` is the structure found so far."""

    def __init__(self):
        self._scanner = TagScanner()
        self._builder = AnswerBuilder()
        self._state = _State.START
        self._held = ""  # text whose role is not settled yet
        self._closed = False
        self._warned_after_end = False

    @property
    def answer(self) -> ParsedAnswer:
        """Everything read so far."""
        return self._builder.answer

    def feed(self, piece: str) -> list[Event]:
        """Events that `piece` settles; nothing after `close`.

        Text deltas may be cut anywhere: apply `join_text` to compare event lists.
        """
        if not self._closed:
            for run in self._scanner.feed(piece):
                self._read(run)
        return self._builder.take_events()

    def close(self) -> list[Event]:
        """Settles what was held back and ends the answer."""
        if not self._closed:
            self._closed = True
            self._read_text(self._uncut(self._scanner.close()))
            self._finish()
        return self._builder.take_events()

    def _read(self, run: str) -> None:
        if run in TAGS:
            self._read_tag(run)
        else:
            self._read_text(run)

    def _read_text(self, run: str) -> None:
        self._held += run
        while self._held and _TEXT_RULES[self._state](self):
            pass

    def _read_tag(self, tag: str) -> None:
        if self._state is _State.ENDED:
            self._warn_after_end()
        elif self._state is _State.PLAN:
            self._end_plan(tag)
        elif self._state is _State.UNIT and tag == UNIT_CLOSE:
            self._builder.unit(self._take_held().strip())
            self._state = _State.REFS
        elif tag == REF:
            self._read_ref()
        else:
            self._settle_before(tag)
            self._state = _State.BODY
            _TAG_RULES.get(tag, StreamParser._drop_tag)(self, tag)

    # Text, by state. A rule returns False to wait for more text, True when it moved on.

    def _text_start(self) -> bool:
        if _LEADING.fullmatch(self._held):
            return False
        self._state = _State.BODY
        return True

    def _text_plan(self) -> bool:
        line, newline, rest = self._held.partition("\n")
        if not newline:
            return False
        self._held = rest
        self._builder.plan_line(line)
        return True

    def _text_after_plan(self) -> bool:
        match = _PLAN_END.match(self._held)
        assert match, "the pattern accepts the empty text"
        if match.group().endswith("\n"):
            self._held = self._held[match.end() :]
        elif match.end() == len(self._held):
            return False
        self._state = _State.BODY
        return True

    def _text_body(self) -> bool:
        cut = max(self._held.rfind("("), self._held.rfind("["))
        if cut < 0 or not _BRACKET_TAIL.fullmatch(self._held, cut):
            cut = len(self._held)
        text, self._held = self._held[:cut], self._held[cut:]
        self._builder.text(text)
        return False

    def _text_after_phrase(self) -> bool:
        if _GROUP_START.fullmatch(self._held):
            return False
        self._builder.warn("phrase without a group")
        self._state = _State.BODY
        return True

    def _text_unit(self) -> bool:
        if len(self._held) <= _MAX_UNIT and "\n" not in self._held:
            return False
        self._builder.warn("unit tag is not closed")
        self._state = _State.BODY
        return True

    def _text_refs(self) -> bool:
        if match := _GROUP_END.match(self._held):
            self._held = self._held[match.end() :]
        elif _REF_START.fullmatch(self._held):
            return False
        else:
            self._builder.warn("text inside a group")
        self._builder.close_group()
        self._state = _State.BODY
        return True

    def _text_ended(self) -> bool:
        if self._take_held().strip():
            self._warn_after_end()
        return True

    # Tags

    def _settle_before(self, tag: str) -> None:
        """Decides what the held text was, now that `tag` follows it."""
        held = self._take_held()
        parenthesis = tag == UNIT_OPEN and held.strip() == "("
        if self._state is _State.UNIT:
            self._builder.warn("unit tag is not closed")
        elif self._state is _State.REFS:
            self._builder.warn("group is not closed")
            self._builder.close_group()
        elif self._state is _State.AFTER_PHRASE and tag != UNIT_OPEN:
            self._builder.warn("phrase without a group")
        if tag == UNIT_OPEN and not parenthesis:
            self._builder.warn("unit without an opening parenthesis")
        before_plan = self._state is _State.START and tag == TASK_OPEN
        if not (parenthesis or before_plan or self._state is _State.AFTER_PLAN):
            self._builder.text(held)

    def _open_plan(self, tag: str) -> None:
        if self._builder.open_plan():
            self._state = _State.PLAN

    def _end_plan(self, tag: str) -> None:
        self._builder.plan_line(self._take_held())
        self._state = _State.AFTER_PLAN
        if tag != TASK_CLOSE:
            # Most likely the closing tag is missing: what follows is the body.
            self._builder.warn("plan is not closed")
            self._state = _State.BODY
            self._read_tag(tag)

    def _open_phrase(self, tag: str) -> None:
        self._builder.open_phrase()

    def _close_phrase(self, tag: str) -> None:
        if self._builder.close_phrase():
            self._state = _State.AFTER_PHRASE

    def _open_unit(self, tag: str) -> None:
        if not self._builder.phrase_waits:
            self._builder.warn("unit without a phrase")
        self._state = _State.UNIT

    def _read_ref(self) -> None:
        if self._state is _State.UNIT:
            self._builder.warn("unit tag is not closed")
        elif self._state is not _State.REFS:
            self._builder.warn("reference outside a group")
        held = self._take_held()
        index = _FULL_INDEX.search(held)
        if index is None and self._state in (_State.BODY, _State.UNIT):
            self._builder.text(held)
        self._builder.ref(int(index[1]) if index else None)
        self._state = _State.REFS

    def _drop_tag(self, tag: str) -> None:
        self._builder.warn(f"unexpected {tag}")

    def _end(self, tag: str) -> None:
        self._finish()

    # Ends

    def _uncut(self, rest: str) -> str:
        """What a trailing start of a tag was: inside an unfinished structure a tag cut short."""
        structure = self._builder.in_phrase or self._state in _UNFINISHED
        if not (structure and rest.startswith("<")):
            return rest
        self._builder.warn(f"cut inside a tag: {rest!r}")
        return ""

    def _finish(self) -> None:
        if self._state is _State.ENDED:
            return
        held = self._take_held()
        if self._state is _State.PLAN:
            self._builder.plan_line(held)
        if self._state in _UNFINISHED:
            self._builder.warn(_UNFINISHED[self._state])
        elif self._state is not _State.AFTER_PLAN:
            self._builder.text(held)
        self._state = _State.ENDED
        self._builder.end()

    def _warn_after_end(self) -> None:
        if not self._warned_after_end:
            self._builder.warn("text after the end")
        self._warned_after_end = True

    def _take_held(self) -> str:
        held, self._held = self._held, ""
        return held


_UNFINISHED = {
    _State.PLAN: "plan is not closed",
    _State.AFTER_PHRASE: "phrase without a group",
    _State.UNIT: "unit tag is not closed",
    _State.REFS: "group is not closed",
}

_TEXT_RULES: dict[_State, Callable[[StreamParser], bool]] = {
    _State.START: StreamParser._text_start,
    _State.PLAN: StreamParser._text_plan,
    _State.AFTER_PLAN: StreamParser._text_after_plan,
    _State.BODY: StreamParser._text_body,
    _State.AFTER_PHRASE: StreamParser._text_after_phrase,
    _State.UNIT: StreamParser._text_unit,
    _State.REFS: StreamParser._text_refs,
    _State.ENDED: StreamParser._text_ended,
}

_TAG_RULES: dict[str, Callable[[StreamParser, str], None]] = {
    TASK_OPEN: StreamParser._open_plan,
    PHRASE_OPEN: StreamParser._open_phrase,
    PHRASE_CLOSE: StreamParser._close_phrase,
    UNIT_OPEN: StreamParser._open_unit,
    END_OF_ANSWER: StreamParser._end,
}
