"""The streaming parser: independent of how the text is cut, and unbreakable."""

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trp_answers import answers, random_answer

from refvlm_jax.trp.parse import parse_answer
from refvlm_jax.trp.render import render_answer
from refvlm_jax.trp.stream import EventKind, StreamParser, join_text
from refvlm_jax.trp.tokens import RESERVED

SHREDS = [
    *RESERVED,
    "</s>",
    "<s>",
    "(",
    ")",
    "[",
    "]",
    "[0]",
    "[12]",
    "1",
    " ",
    "\n",
    "\t",
    "box",
    "<",
    "a",
]
SHREDS += [
    "Unit decode (True).",
    "- Name: dog Unit: box Num: 1",
    "mask",
    "</",
    "<Ph",
    " " * 9,
    "é🐕",
]
SHREDS += ["<Phrase>dog</Phrase>", "(<Unit>box</Unit>", "[0]<REF>", ")"]
garbage = st.lists(st.sampled_from(SHREDS), max_size=25).map("".join)
SETTINGS = settings(
    derandomize=True, max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck)
)


def events_of(pieces):
    parser = StreamParser()
    events = [event for piece in pieces for event in parser.feed(piece)]
    return join_text(events + parser.close()), parser.answer


def chunks(text, rng):
    while text:
        size = rng.randint(1, 6)
        yield text[:size]
        text = text[size:]


@SETTINGS
@given(garbage, st.integers(0, 2**32))
def test_chunking_does_not_change_events(text, seed):
    whole = events_of([text])
    assert events_of(chunks(text, random.Random(seed))) == whole
    assert events_of(text) == whole


@SETTINGS
@given(answers(), st.integers(0, 2**32))
def test_chunking_of_well_formed_answers(case, seed):
    text = render_answer(*case).text
    events, answer = events_of(chunks(text, random.Random(seed)))
    assert (events, answer) == events_of([text])
    assert answer == parse_answer(text)
    assert "".join(e.text for e in events if e.kind is EventKind.TEXT_DELTA) == case[0]


@SETTINGS
@given(st.one_of(garbage, st.text()))
def test_garbage_never_raises_and_keeps_every_reference(text):
    events, answer = events_of([text])
    end = text.find("</s>")
    assert answer.ref_count == text[: end if end >= 0 else None].count("<REF>")
    assert sum(group.ref_count for group in answer.groups) == answer.ref_count
    starts = [group.first_ref for group in answer.groups]
    assert starts == [sum(g.ref_count for g in answer.groups[:n]) for n in range(len(starts))]
    assert [e.kind for e in events].count(EventKind.END) == 1
    assert [e.text for e in events if e.kind is EventKind.WARNING] == answer.warnings
    assert sum(e.kind is EventKind.REF for e in events) == answer.ref_count


def test_events_of_an_answer():
    text = "<Task>\nUnit decode (True).\n- Name: dog Unit: box Num: 2\n</Task>\n"
    text += "A <Phrase>dog</Phrase>(<Unit>box</Unit>[0]<REF>[1]<REF>)!</s>"
    events, _ = events_of(text)
    assert [(e.kind.value, e.text or e.index) for e in events] == [
        ("plan_line", "dog"),
        ("text_delta", "A "),
        ("phrase_open", None),
        ("text_delta", "dog"),
        ("phrase_close", "dog"),
        ("unit", "box"),
        ("ref", 0),
        ("ref", 1),
        ("group_close", None),
        ("text_delta", "!"),
        ("end", None),
    ]
    assert {e.group for e in events if e.kind in (EventKind.UNIT, EventKind.REF)} == {0}


def test_text_is_not_held_back_longer_than_needed():
    parser = StreamParser()
    assert [e.text for e in parser.feed("A dog (")] == ["A dog "]
    assert [e.text for e in parser.feed("brown")] == ["(brown"]
    assert parser.feed(" <Phra")[0].text == " "
    assert [e.kind for e in parser.feed("se>")] == [EventKind.PHRASE_OPEN]


def test_feed_after_close_is_ignored():
    parser = StreamParser()
    parser.feed("A")
    assert parser.close()[-1].kind is EventKind.END
    assert parser.feed("B") == [] and parser.close() == []
    assert parser.answer.plain == "A"


def test_many_groups_fed_by_character():
    rng = random.Random(1)
    bodies = [render_answer(*random_answer(rng), plan=False).text for _ in range(300)]
    events, answer = events_of(" . ".join(bodies))
    assert answer.warnings == [] and len(events) > 300
