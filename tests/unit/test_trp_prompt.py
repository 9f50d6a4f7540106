"""Task commands, prompts and the phrases a tokenizer should know whole."""

import itertools
import re

import pytest

from refvlm_jax.trp.commands import COMMANDS, command_text
from refvlm_jax.trp.prompt import (
    PREAMBLE,
    TURN_SEPARATOR,
    WIRE_PHRASES,
    WIRE_WORDS,
    split_slots,
    turn_prompt,
)
from refvlm_jax.trp.render import render_answer
from refvlm_jax.trp.spans import TextSpan
from refvlm_jax.trp.tokens import IMAGE_SLOT, PROMPT_SLOT, SPECIAL_TOKENS, Unit

UNITS = [unit for unit in Unit if unit is not Unit.NONE]
COMMAND = (
    "Task Command:\n- task name: grounding_detection\n- answer element: phrase, unit\n"
    "- unit: <Unit>box</Unit>\n\n"
)


def test_two_turn_sequence():
    mugs = render_answer("mug", [TextSpan(0, 3, Unit.BOX, 2)]).text
    spoon = render_answer("spoon", [TextSpan(0, 5, Unit.BOX, 1)]).text
    name = "grounding_detection"
    text = "<s>" + turn_prompt(name, "Locate every mug.", first=True, image=True) + mugs + "</s>"
    text += (
        TURN_SEPARATOR + "<s>" + turn_prompt(name, "And the spoon?", first=False) + spoon + "</s>"
    )
    assert text == (
        f"<s>{PREAMBLE}{COMMAND}USER: <image>\nLocate every mug. ASSISTANT:"
        "<Task>\nUnit decode (True). Class name, target unit and number:\n"
        "- Name: mug Unit: box Num: 2\n</Task>\n"
        "<Phrase>mug</Phrase>(<Unit>box</Unit>[0]<REF>[1]<REF>)</s>"
        f"\n<s>{COMMAND}USER: And the spoon? ASSISTANT:"
        "<Task>\nUnit decode (True). Class name, target unit and number:\n"
        "- Name: spoon Unit: box Num: 1\n</Task>\n"
        "<Phrase>spoon</Phrase>(<Unit>box</Unit>[0]<REF>)</s>"
    )


@pytest.mark.parametrize(
    ("name", "units", "tail"),
    [
        ("vqa", None, "sentence\n- unit: None\n"),
        ("segmentation", None, "phrase, unit\n- unit: <Unit>mask</Unit>\n\n"),
        ("gcg_detection", None, "phrase, sentence, unit\n- unit: <Unit>box</Unit>\n\n"),
        ("depth", None, "sentence, phrase, unit\n- unit: <Unit>depth</Unit>\n\n"),
        ("grounding_keypoints", None, "phrase, unit\n- unit: <Unit>keypoint</Unit>\n\n"),
        ("detection", (), "phrase\n- unit: None\n"),
        (
            "gcg_detection",
            (Unit.BOX, Unit.MASK),
            "phrase, sentence, unit\n- unit: <Unit>box</Unit>, <Unit>mask</Unit>\n\n",
        ),
    ],
)
def test_command_text(name, units, tail):
    head = f"Task Command:\n- task name: {name}\n- answer element: "
    assert command_text(name, units) == head + tail


def test_bad_commands_are_named():
    with pytest.raises(ValueError, match="did you mean 'detection'"):
        command_text("detecton")
    with pytest.raises(ValueError, match="distinct"):
        command_text("detection", (Unit.BOX, Unit.BOX))
    with pytest.raises(ValueError, match="distinct"):
        command_text("detection", (Unit.NONE,))


@pytest.mark.parametrize(
    ("question", "clean"),
    [
        ("What is in <image>?", "What is in?"),
        ("In <image> , find it.", "In, find it."),
        ("Look at <image> and  count\tdogs ", "Look at and count dogs"),
        ("<image>\nDescribe it.", "Describe it."),
        ("Pick one:\n A. yes \n B. no", "Pick one:\nA. yes\nB. no"),
        (
            "How do region[VPT] and region[VPT] relate ?",
            "How do region[VPT] and region[VPT] relate ?",
        ),
        ("[VPT]", "[VPT]"),
    ],
)
def test_questions_are_normalised(question, clean):
    prompt = turn_prompt("vqa", question, first=False, image=True)
    assert prompt == f"{command_text('vqa')}USER: <image>\n{clean} ASSISTANT:"
    assert turn_prompt("vqa", question, first=False).count(IMAGE_SLOT) == 0


@pytest.mark.parametrize("question", ["", " \n", "<image>", "what is <REF>", "a </s> b"])
def test_bad_questions_are_refused(question):
    with pytest.raises(ValueError, match="question"):
        turn_prompt("vqa", question, first=True)


def test_split_slots():
    text = f"a{IMAGE_SLOT}\nb {PROMPT_SLOT}{PROMPT_SLOT} c"
    assert split_slots(text) == ["a", IMAGE_SLOT, "\nb ", PROMPT_SLOT, PROMPT_SLOT, " c"]
    assert "".join(split_slots(text)) == text
    assert split_slots(IMAGE_SLOT) == [IMAGE_SLOT]
    assert split_slots("") == []


def test_preamble_is_short_and_names_the_elements():
    assert len(PREAMBLE.split()) <= 36  # bullets and tags included
    assert all(f"- {element}:" in PREAMBLE for element in ("Sentence", "Phrase", "Unit"))
    assert [token for token in SPECIAL_TOKENS if token in PREAMBLE] == [
        "<Unit>",
        "</Unit>",
        "<Phrase>",
        "</Phrase>",
    ]


def leftover(text):
    """What remains of a text once special tokens and wire phrases are taken out, in order."""
    words = [rf"\b{word}\b" for word in WIRE_WORDS]
    whole = sorted(set(WIRE_PHRASES) - set(WIRE_WORDS) | set(SPECIAL_TOKENS), key=len, reverse=True)
    pattern = "|".join([*map(re.escape, whole), *words])
    return [rest for rest in re.split(pattern, text) if rest]


def test_wire_phrases_cover_every_prompt():
    choices: list[tuple[Unit, ...] | None] = [None, (), *((unit,) for unit in UNITS)]
    for name, first, units in itertools.product(COMMANDS, (True, False), choices):
        text = turn_prompt(name, "Where?", first=first, units=units)
        assert leftover(text) == ["Where?"], (name, first, units)


def test_wire_phrases_cover_answers():
    assert leftover(render_answer("Yes.", []).text) == ["\nYes."]
    text = render_answer("red cup", [TextSpan(0, 7, Unit.MASK, 2)]).text
    assert leftover(text) == ["red cup", "2\n", "\n", "red cup", "(", ")"]


def test_wire_phrases_do_not_cut_words():
    assert len(set(WIRE_PHRASES)) == len(WIRE_PHRASES)
    for phrase in WIRE_PHRASES:
        assert not any(token in phrase for token in SPECIAL_TOKENS)
        assert phrase in WIRE_WORDS or not phrase[-1].isalnum()
    assert leftover("boxes, masks, keypoints and pinpoint") == [
        "boxes, masks, keypoints and pinpoint"
    ]
