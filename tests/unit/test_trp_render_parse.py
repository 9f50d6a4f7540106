"""The answer grammar: golden strings, round trips, constraints, format checks, coordinates."""

import random
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trp_answers import answers, random_answer

from refvlm_jax.trp.coords import format_boxes, parse_coords, render_answer_coords
from refvlm_jax.trp.format import check_format
from refvlm_jax.trp.parse import PlanLine, parse_answer
from refvlm_jax.trp.render import render_answer
from refvlm_jax.trp.spans import TextSpan, check_spans, closing_order
from refvlm_jax.trp.tokens import Unit

PLAN0 = "<Task>\nUnit decode (False).\n</Task>\n"
PLAN1 = "<Task>\nUnit decode (True). Class name, target unit and number:\n{}</Task>\n"
B1 = "(<Unit>box</Unit>[0]<REF>)"
B2 = "(<Unit>box</Unit>[0]<REF>[1]<REF>)"


def box(start: int, end: int, count: int = 1, unit: Unit = Unit.BOX) -> TextSpan:
    return TextSpan(start, end, unit, count)


GOLDEN = {
    "caption": ("A dog runs on sand.", [], PLAN0 + "A dog runs on sand."),
    "detection": (
        "dog,cat.",
        [box(0, 3, 2), box(4, 7)],
        PLAN1.format("- Name: dog Unit: box Num: 2\n- Name: cat Unit: box Num: 1\n")
        + f"<Phrase>dog</Phrase>{B2},<Phrase>cat</Phrase>{B1}.",
    ),
    "conditional segmentation": (
        "mug",
        [box(0, 3, 2, Unit.MASK)],
        PLAN1.format("- Name: mug Unit: mask Num: 2\n")
        + f"<Phrase>mug</Phrase>{B2.replace('box', 'mask')}",
    ),
    "referring expression": (
        "target.",
        [box(0, 6)],
        PLAN1.format("- Name: target Unit: box Num: 1\n") + f"<Phrase>target</Phrase>{B1}.",
    ),
    "grounded caption": (
        "A dog near two cats .",
        [box(2, 5), box(11, 19, 2)],
        PLAN1.format("- Name: dog Unit: box Num: 1\n- Name: two cats Unit: box Num: 2\n")
        + f"A <Phrase>dog</Phrase>{B1} near <Phrase>two cats</Phrase>{B2} .",
    ),
    "keypoints": (
        "person",
        [box(0, 6, 1, Unit.KEYPOINT)],
        PLAN1.format("- Name: person Unit: keypoint Num: 1\n")
        + "<Phrase>person</Phrase>(<Unit>keypoint</Unit>[0]<REF>)",
    ),
    "depth": (
        "See target.",
        [box(4, 10, 1, Unit.DEPTH)],
        PLAN1.format("- Name: target Unit: depth Num: 1\n")
        + "See <Phrase>target</Phrase>(<Unit>depth</Unit>[0]<REF>).",
    ),
    "nested": (
        "man in hat",
        [box(0, 10), box(7, 10)],
        PLAN1.format("- Name: hat Unit: box Num: 1\n- Name: man in hat Unit: box Num: 1\n")
        + f"<Phrase>man in <Phrase>hat</Phrase>{B1}</Phrase>{B1}",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_answers(name):
    answer, spans, text = GOLDEN[name]
    assert render_answer(answer, spans).text == text
    assert check_format(text).valid
    assert_round_trip(answer, spans)


def test_empty_answer_has_no_plan():
    assert render_answer("", []).text == ""
    assert parse_answer("").plain == ""


def test_order_is_the_closing_order():
    spans = [box(0, 10), box(7, 10), box(0, 3)]
    assert render_answer("man in hat", spans).order == (2, 1, 0)
    assert closing_order(spans) == [2, 1, 0]


def assert_round_trip(answer, spans):
    for plan in (True, False):
        rendered = render_answer(answer, spans, plan=plan)
        parsed = parse_answer(rendered.text)
        assert parsed.warnings == []
        assert parsed.plain == answer
        found = [TextSpan(g.start, g.end, g.unit, g.ref_count) for g in parsed.groups]
        assert found == [spans[i] for i in rendered.order]
        firsts = [g.first_ref for g in parsed.groups]
        assert firsts == [sum(s.count for s in found[:n]) for n in range(len(found))]
        assert parsed.ref_count == sum(span.count for span in spans) == rendered.text.count("<REF>")
        assert check_format(rendered.text).valid == (plan and bool(answer))


@settings(
    derandomize=True, max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck)
)
@given(answers())
def test_round_trip_of_any_text(case):
    assert_round_trip(*case)


def test_round_trip_of_awkward_pieces():
    rng = random.Random(0)
    cases = [random_answer(rng) for _ in range(8500)]
    for case in cases:
        assert_round_trip(*case)
    nested = sum(
        any(a.start <= b.start and b.end <= a.end for a in s for b in s if a != b) for _, s in cases
    )
    mixed = sum(len({span.unit for span in spans}) > 1 for _, spans in cases)
    assert nested > 500 and mixed > 500  # the cases do cover what they are for


@pytest.mark.parametrize(
    ("answer", "spans", "message"),
    [
        ("a <REF> b", [], "reserved string '<REF>' at offset 2"),
        ("see <image>", [], "reserved"),
        ("[VPT]", [], "reserved"),
        ("end</s>", [], "reserved"),
        ("abcdef", [box(0, 3), box(2, 5)], "cross"),
        ("abcdef", [box(0, 3), box(0, 3)], "identical"),
        ("abcdef", [box(3, 3)], "start < end"),
        ("abcdef", [box(0, 7)], "start < end"),
        ("abcdef", [box(-1, 2)], "start < end"),
        ("a\nb", [box(0, 3)], "newline"),
        ("x   y", [box(1, 4)], "blank"),
        ("a Unit: b", [box(0, 9)], "Unit: "),
        ("a" * 201, [box(0, 201)], "201 characters"),
        ("abc", [box(0, 3, 0)], "at least one target"),
        ("abc", [box(0, 3, 1, Unit.NONE)], "decodes to nothing"),
        ("", [box(0, 1)], "start < end"),
    ],
)
def test_illegal_spans_are_named(answer, spans, message):
    with pytest.raises(ValueError, match=message):
        check_spans(answer, spans)
    with pytest.raises(ValueError, match=message):
        render_answer(answer, spans)


def test_legal_limits():
    check_spans("a" * 200 + "\n", [box(0, 200), box(0, 1), box(1, 200)])


def test_blanks_around_tags_are_tolerated():
    text = (
        "<Task> \nUnit decode (True). Class name, target unit and number: \n"
        "- Name: dog Unit: box Num: 2\n </Task> \n"
        "<Phrase> dog </Phrase> ( <Unit> box </Unit> [0] <REF> [1] <REF> ) runs</s>\n"
    )
    parsed = parse_answer(text)
    assert parsed.warnings == []
    assert parsed.plan == [PlanLine("dog", "box", 2)]
    assert parsed.plain == " dog  runs"
    assert (parsed.groups[0].phrase, parsed.groups[0].indices) == ("dog", [0, 1])
    assert check_format(text).valid


def test_any_cut_keeps_the_complete_groups():
    text = GOLDEN["grounded caption"][2]
    for cut in range(len(text)):
        parsed = parse_answer(text[:cut])
        assert parsed.ref_count == text[:cut].count("<REF>")
        assert sum(group.ref_count for group in parsed.groups) == parsed.ref_count
        # Outside a phrase, half a tag cannot be told from text.
        assert "A dog near two cats .".startswith(re.sub(r"<\w*$", "", parsed.plain))


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("dog[0]<REF>", [(None, None, 1)]),
        ("<REF><REF>", [(None, None, 2)]),
        ("<Phrase>dog</Phrase>[0]<REF>", [("dog", None, 1)]),
        ("(<Unit>box</Unit>[0]<REF>)", [(None, Unit.BOX, 1)]),
        ("<Phrase>dog</Phrase> is (<Unit>box</Unit>[0]<REF>)", [("dog", Unit.BOX, 1)]),
        ("<Phrase>dog</Phrase>(<Unit>box</Unit>[0]<REF>, [1]<REF>)", [("dog", Unit.BOX, 2)]),
        ("<Phrase>dog</Phrase>(<Unit>hull</Unit>[0]<REF>)", [("dog", None, 1)]),
        (f"<Phrase>cat</Phrase><Phrase>dog</Phrase>{B1}", [("dog", Unit.BOX, 1)]),
        (f"</Phrase>dog</Unit>{B1}", [(None, Unit.BOX, 1)]),
        ("<Phrase>a</Phrase>(<Unit>box</Unit>) [0]<REF>", [("a", Unit.BOX, 1)]),
        (f"<Task>\n- Name: dog Unit: box Num: 1\n<Phrase>dog</Phrase>{B1}", [("dog", Unit.BOX, 1)]),
    ],
)
def test_malformed_answers_give_best_effort_groups(text, groups):
    parsed = parse_answer(text)
    assert [(g.phrase, g.unit, g.ref_count) for g in parsed.groups] == groups
    assert parsed.warnings
    assert not check_format(text).valid


def test_references_beside_well_formed_groups_do_not_shift_ordinals():
    parsed = parse_answer(f"[0]<REF> <Phrase>dog</Phrase>{B2} <Phrase>cat</Phrase>{B1}")
    assert [(g.first_ref, g.ref_count) for g in parsed.groups] == [(0, 1), (1, 2), (3, 1)]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("<Task>\n", "<Task>"), None),
        (("Num: 2", "Num: 3"), "self_consistent"),
        (("Name: dog", "Name: cow"), "self_consistent"),
        (("[1]<REF>", "[2]<REF>"), "ref_index_ok"),
        (("(True). Class name, target unit and number:", "(False)."), "cot_flag_ok"),
        (("</Phrase>(", "</Phrase>"), "parse_ok"),
        ((PLAN1.split("{")[0], ""), "cot_present"),
    ],
)
def test_format_report_names_the_broken_rule(change, field):
    text = GOLDEN["detection"][2]
    assert change[0] in text
    report = check_format(text.replace(*change))
    assert report.valid == (field is None)
    assert field is None or not getattr(report, field)


def test_coordinates_in_text():
    boxes = [(0.3, 0.3, 0.4, 0.4), (0.5, 0.5, 0.6, 0.6)]
    assert format_boxes(boxes) == "[0.300,0.300,0.400,0.400;0.500,0.500,0.600,0.600]"
    assert format_boxes([(0.25, 0.5)]) == "[0.250,0.500]"
    assert format_boxes([(-0.0004, 1.2)]) == "[0.000,1.000]"
    text = render_answer_coords(
        "a dog and two cats .", [box(2, 5), box(10, 18, 2)], [boxes[:1], boxes]
    )
    assert text == (
        "a dog[0.300,0.300,0.400,0.400] and "
        "two cats[0.300,0.300,0.400,0.400;0.500,0.500,0.600,0.600] ."
    )
    assert parse_coords(text) == [boxes[:1], boxes]


def test_coordinates_of_nested_phrases_close_inner_first():
    text = render_answer_coords(
        "man in hat", [box(0, 10), box(7, 10)], [[(0.1, 0.1)], [(0.2, 0.2)]]
    )
    assert text == "man in hat[0.200,0.200][0.100,0.100]"


def test_bad_coordinates_are_refused():
    for boxes in ([], [(0.1, 0.2, 0.3)], [(float("nan"), 0.2)]):
        with pytest.raises(ValueError):
            format_boxes(boxes)
    with pytest.raises(ValueError, match="do not match"):
        render_answer_coords("dog", [box(0, 3, 2)], [[(0.1, 0.2)]])


@settings(derandomize=True, deadline=None)
@given(st.text(alphabet="[].,; 0123456789", max_size=40))
def test_parse_coords_never_raises(text):
    assert all(len(item) in (2, 4) for items in parse_coords(text) for item in items)


def test_parse_coords_skips_other_brackets():
    assert parse_coords("[1] [0] [0.1,0.2,0.3] [ 0.1 , 0.2 ] [0.1,0.2") == [[(0.1, 0.2)]]
