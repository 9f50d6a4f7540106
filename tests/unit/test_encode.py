import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_dialogs import (
    HEIGHT,
    SPEC,
    WIDTH,
    dialog,
    grounding,
    media,
    random_dialog,
    region,
    text_turn,
    tokenizer,
    write_picture,
)

from data_pipelines import turns
from data_pipelines.encode import EncodeError, EncodeOptions, encode_prompt, encode_row
from data_pipelines.images import ImageError
from data_pipelines.rasterise import prompt_mask, target_mask
from data_pipelines.records import Mask, Region, Turn
from data_pipelines.turns import cut_positions, cut_turn
from refvlm_jax import rle
from refvlm_jax.batch import NO_GROUP, NO_SLOT, TEXT
from refvlm_jax.geometry import PaddedSquare
from refvlm_jax.trp.format import check_format
from refvlm_jax.trp.parse import parse_answer
from refvlm_jax.trp.prompt import TURN_SEPARATOR, turn_prompt
from refvlm_jax.trp.render import render_answer
from refvlm_jax.trp.spans import TextSpan
from refvlm_jax.trp.tokens import IGNORE_ID, IMAGE_SLOT, REF, Unit

OPTIONS = EncodeOptions(spec=SPEC)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_picture(folder)
    return folder, tokenizer(folder / "tokenizer")


def encode(world, *dialogs, options=OPTIONS, counts=None, **spec):
    folder, words = world
    options = replace(options, spec=replace(options.spec, **spec))
    return encode_row(dialogs, folder, words, options, None, counts=counts)


def supervised(row, words):
    """The supervised stretches of a row as texts, with their end tokens."""
    labels = [IGNORE_ID, *row["labels"].tolist(), IGNORE_ID]
    edges = [k for k in range(1, len(labels)) if (labels[k - 1] < 0) != (labels[k] < 0)]
    return [words.decode(labels[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def length(row):
    return int((row["segment_ids"] == 1).sum())


def check_row(row, words):
    """What must hold of every row."""
    n = length(row)
    assert (row["segment_ids"][:n] == 1).all() and (row["segment_ids"][n:] == 0).all()
    assert row["positions"][:n].tolist() == list(range(n))
    assert (row["labels"][n:] == IGNORE_ID).all() and (row["visual_index"][n:] == TEXT).all()
    learned = row["labels"] != IGNORE_ID
    assert (row["labels"][learned] == row["tokens"][learned]).all()
    assert (row["visual_index"][learned] == TEXT).all()
    places = np.flatnonzero(row["tokens"] == words.id_of(REF))
    valid = row["ref_valid"]
    assert valid.tolist() == [True] * len(places) + [False] * (len(valid) - len(places))
    assert row["ref_pos"][valid].tolist() == places.tolist()
    groups = row["ref_group"][valid]
    assert (np.diff(groups) >= 0).all() and (np.diff(groups) <= 1).all()
    assert (row["ref_group"][~valid] == NO_GROUP).all()
    visual = row["visual_index"][row["visual_index"] != TEXT]
    assert len(set(visual.tolist())) == len(visual)
    used = row["mask_slot"][row["mask_slot"] != NO_SLOT].tolist()
    assert used == list(range(len(used)))
    assert row["masks"].reshape(len(row["masks"]), -1).any(axis=1).sum() == len(used)
    assert set(row["ref_unit"][~valid].tolist()) <= {0}


def test_shapes_and_dtypes_are_those_of_the_batch(world):
    row = encode(world, dialog([grounding([("red cup", [1, 0])])]))
    for name, (shape, dtype) in SPEC.fields(1).items():
        assert row[name].shape == shape[1:] and row[name].dtype == dtype, name


def test_two_turn_trace(world):
    _, words = world
    made = dialog(
        [grounding([("red cup", [0, 1])]), grounding([("dog", [2])], question="And now?")]
    )
    row = encode(world, made)
    check_row(row, words)
    answers = [
        render_answer("red cup.", [TextSpan(0, 7, Unit.BOX, 2)]).text,
        render_answer("dog.", [TextSpan(0, 3, Unit.BOX, 1)]).text,
    ]
    assert supervised(row, words) == [f"{text}</s>" for text in answers]
    first = turn_prompt("grounding_detection", "Where is the cup?", first=True, image=True)
    second = turn_prompt("grounding_detection", "And now?", first=False)
    before, after = first.split(IMAGE_SLOT)
    ids = [words.bos_id, *words.encode(before), *[0] * SPEC.image_tokens, *words.encode(after)]
    start = len(ids) - SPEC.image_tokens - len(words.encode(after))
    ids += [*words.encode(answers[0]), words.eos_id, *words.encode(TURN_SEPARATOR), words.bos_id]
    ids += [*words.encode(second), *words.encode(answers[1]), words.eos_id]
    assert row["tokens"][: length(row)].tolist() == ids
    visual = row["visual_index"]
    assert np.flatnonzero(visual != TEXT).tolist() == list(range(start, start + 4))
    assert visual[start : start + 4].tolist() == [0, 1, 2, 3]
    assert row["ref_group"][:3].tolist() == [0, 0, 1]
    assert row["sample_id"] == -1


def test_box_targets_follow_the_closing_order_of_phrases(world):
    text = "the red cup"
    made = grounding([(text, [3])])
    inner = replace(made.spans[0], start=4, end=7, targets=[5, 6])
    row = encode(world, dialog([replace(made, spans=[made.spans[0], inner])]))
    square = PaddedSquare(WIDTH, HEIGHT)
    boxes = [region(x=2 + 3 * k).box for k in (5, 6, 3)]
    np.testing.assert_allclose(row["boxes"][:3], square.boxes_to_model(np.array(boxes)), rtol=1e-6)
    assert row["ref_unit"][:4].tolist() == [Unit.BOX] * 3 + [0]
    assert row["ref_group"][:4].tolist() == [0, 0, 1, NO_GROUP]
    assert not row["boxes"][3:].any() and (row["mask_slot"] == NO_SLOT).all()


def test_mask_targets_take_slots(world):
    hidden = replace(region(x=5), no_mask_loss=True)
    regions = [region(x=2), hidden, region(x=20)]
    made = dialog([grounding([("cup", [0, 1, 2])], Unit.MASK)], regions=regions)
    row = encode(world, made)
    assert row["mask_slot"][:4].tolist() == [0, NO_SLOT, 1, NO_SLOT]
    for slot, k in enumerate((0, 2)):
        wanted = target_mask(regions[k].mask, WIDTH, HEIGHT, SPEC.mask_size)
        assert (row["masks"][slot] == wanted).all() and wanted.any()
    assert not row["masks"][2:].any() and not row["boxes"].any()


def test_picture_and_prompts_are_filled_in(world):
    made = dialog(
        [grounding([("cup", [0])], prompts=[4]), grounding([("dog", [1])], prompts=[2, 7])]
    )
    row = encode(world, made)
    check_row(row, world[1])
    assert row["image_valid"].tolist() == [True] and row["images"][0, 16, 16].any()
    assert row["pixel_box"][0].tolist() == list(PaddedSquare(WIDTH, HEIGHT).pixel_box(32))
    assert row["prompt_valid"].tolist() == [True] * 3
    for slot, k in enumerate((4, 2, 7)):
        prompt = made.turns[0].prompts[0]
        wanted = prompt_mask(made.regions[k], prompt.kind, WIDTH, HEIGHT, SPEC.image_size)
        assert (row["prompt_masks"][slot] == wanted).all()
    visual = row["visual_index"][row["visual_index"] != TEXT]
    assert visual.tolist() == list(range(4 + 3 * SPEC.prompt_tokens))


def test_merged_dialogues_share_picture_and_preamble(world):
    _, words = world
    a = dialog([grounding([("cup", [0])], prompts=[1])], uid="a")
    b = dialog([grounding([("dog", [0])], prompts=[0])], uid="b", regions=[region(x=25)])
    row = encode(world, a, b)
    check_row(row, words)
    text = words.decode(row["tokens"][row["visual_index"] == TEXT][: length(row)])
    assert text.count("Follow the task command") == 1
    assert len(supervised(row, words)) == 2
    square = PaddedSquare(WIDTH, HEIGHT)
    wanted = square.boxes_to_model(np.array([a.regions[0].box, b.regions[0].box]))
    np.testing.assert_allclose(row["boxes"][:2], wanted, rtol=1e-6)
    assert (row["prompt_masks"][1] != row["prompt_masks"][0]).any()


def test_unsupervised_turns_keep_their_references(world):
    made = [replace(grounding([("cup", [0])]), supervise=False), grounding([("dog", [1])])]
    row = encode(world, dialog(made))
    assert supervised(row, world[1]) == [
        render_answer("dog.", [TextSpan(0, 3, Unit.BOX, 1)]).text + "</s>"
    ]
    assert row["ref_valid"].sum() == 2


def test_text_only_rows_have_no_picture(world):
    row = encode(world, dialog([text_turn("yes")], image=None, regions=[]))
    assert not row["image_valid"].any() and (row["visual_index"] == TEXT).all()
    check_row(row, world[1])


def test_an_empty_answer_supervises_only_the_end_token(world):
    row = encode(world, dialog([replace(text_turn(""), task_name="detection")]))
    assert supervised(row, world[1]) == ["</s>"]


def test_the_command_names_the_units_of_the_answer(world):
    made = replace(grounding([("cup", [0])], Unit.MASK), task_name="vqa")
    row = encode(world, dialog([made]))
    text = world[1].decode(row["tokens"][: length(row)])
    assert "- unit: <Unit>mask</Unit>\n\n" in text


def test_without_plan(world):
    row = encode(world, dialog([text_turn("yes")]), options=replace(OPTIONS, plan=False))
    assert supervised(row, world[1]) == ["yes</s>"]


def test_coordinate_register(world):
    made = dialog([grounding([("cup", [0, 1])], Unit.MASK, prompts=[2])])
    row = encode(world, made, options=replace(OPTIONS, register="coord"))
    check_row(row, world[1])
    # 40 x 30 pixels, padded by 5 rows above: x / 40 and (y + 5) / 40.
    coords = "[0.050,0.275,0.300,0.525;0.125,0.275,0.375,0.525]"
    assert supervised(row, world[1]) == [f"cup{coords}.</s>"]
    text = world[1].decode(row["tokens"][: length(row)][row["visual_index"][: length(row)] == TEXT])
    question = "\nWhere is the cup? [0.200,0.275,0.450,0.525] ASSISTANT:"
    assert text.startswith(f"<s>USER: {question}")
    assert not row["ref_valid"].any() and not row["prompt_valid"].any()


def test_templates_get_register_and_generator(world, monkeypatch):
    calls = []

    def render(bank, slots, *, register, rng, regions, limit, index):
        calls.append((bank, slots, register, rng is not None))
        return "Where?"

    monkeypatch.setattr(turns.templates, "render", render)
    asked = dialog([Turn(task_name="vqa", bank="VQA", slots={"q": "x"}, answer="yes")])
    rng = np.random.default_rng(0)
    encode_row([asked], world[0], world[1], OPTIONS, rng)
    encode_row([asked], world[0], world[1], replace(OPTIONS, fixed_template=True), rng)
    encode_prompt(asked, 0, world[0], world[1], OPTIONS)
    assert calls == [("VQA", {"q": "x"}, "ref", random) for random in (True, False, False)]


def test_trailing_turns_that_do_not_fit_are_dropped(world):
    made = dialog([grounding([("cup", [0])]), grounding([("dog", [1])]), text_turn("yes")])
    full = length(encode(world, made))
    counts = Counter()
    row = encode(world, made, seq_len=full - 1, counts=counts)
    assert len(supervised(row, world[1])) == 2 and counts == {"turns_dropped": 1}
    assert len(supervised(encode(world, made, seq_len=full), world[1])) == 3


@pytest.mark.parametrize("limit", ["refs", "mask_refs", "prompts"])
def test_turns_beyond_the_slots_are_dropped(world, limit):
    turn = grounding([("cup", [0])], Unit.MASK, prompts=[1])
    counts = Counter()
    row = encode(world, dialog([turn, turn, text_turn("yes")]), counts=counts, **{limit: 1})
    assert row["ref_valid"].sum() == 1 and counts == {"turns_dropped": 2}


def test_a_dialogue_that_does_not_fit_leaves_room_for_those_beside_it(world):
    wide = dialog([text_turn("no"), grounding([("cup", [0, 1])]), text_turn("two")])
    narrow = dialog([grounding([("dog", [1])]), text_turn("yes")])
    counts = Counter()
    beside = replace(OPTIONS, shared_picture=True)
    row = encode(world, narrow, wide, narrow, options=beside, counts=counts, refs=2)
    ends = [text.rpartition("\n")[2] for text in supervised(row, world[1])]
    assert [end for end in ends if REF not in end] == ["yes</s>", "no</s>", "yes</s>"]
    assert row["ref_valid"].sum() == 2 and counts == {"turns_dropped": 2}
    assert set(row["dialog_ids"].tolist()) >= {1, 2, 3}


def test_a_long_first_answer_is_cut_before_a_group(world):
    _, words = world
    phrases = [("red cup", [0, 1]), ("green dog", [2]), ("dog", [3, 4])]
    made, counts = dialog([grounding(phrases)]), Counter()
    row = encode(world, made, seq_len=length(encode(world, made)) - 3, counts=counts)
    check_row(row, words)
    cut = "red cup, green dog, "
    spans = [TextSpan(0, 7, Unit.BOX, 2), TextSpan(9, 18, Unit.BOX, 1)]
    assert supervised(row, words) == [render_answer(cut, spans).text + "</s>"]
    assert counts == {"answers_cut": 1, "refs_cut": 2}
    row = encode(world, made, refs=2)
    assert parse_answer(supervised(row, words)[0].removesuffix("</s>")).ref_count == 2


def test_masks_of_a_first_turn_without_slot_are_counted(world):
    counts = Counter()
    made = dialog([grounding([("cup", [0, 1, 2])], Unit.MASK)])
    row = encode(world, made, counts=counts, mask_refs=2)
    check_row(row, world[1])
    assert row["mask_slot"][:3].tolist() == [0, 1, NO_SLOT] and row["ref_valid"].sum() == 3
    assert counts == {"masks_without_slot": 1}


def test_a_mask_without_pixels_is_counted(world):
    empty = Mask(h=HEIGHT, w=WIDTH, counts=rle.encode(np.zeros((HEIGHT, WIDTH), np.uint8)))
    made = dialog([grounding([("cup", [0])], Unit.MASK)], regions=[Region(mask=empty)])
    counts = Counter()
    row = encode(world, made, counts=counts)
    check_row(row, world[1])
    assert counts == {"masks_vanished": 1} and row["mask_slot"][0] == NO_SLOT


def test_a_long_text_is_cut_without_learning_to_stop(world):
    made, counts = dialog([text_turn("the red cup " * 40)]), Counter()
    row = encode(world, made, seq_len=100, counts=counts)
    assert length(row) == 100 and counts == {"answers_cut": 1}
    assert row["tokens"][99] == world[1].eos_id and row["labels"][99] == IGNORE_ID
    assert row["labels"][98] == row["tokens"][98]


def test_cut_positions_never_split_a_group():
    turn = grounding([("red cup", [0]), ("the green dog", [1])])  # "red cup, the green dog."
    inner = replace(turn.spans[0], start=13, end=18)
    turn = replace(turn, spans=[*turn.spans, inner])
    assert cut_positions(turn) == [0, 7, 9, 22]
    assert [len(cut_turn(turn, k).spans) for k in cut_positions(turn)] == [0, 1, 1, 3]


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), seq_len=st.integers(40, 260), refs=st.integers(1, 8))
def test_truncation_keeps_references_and_plan_true(world, seed, seq_len, refs):
    rng = random.Random(seed)
    made = [random_dialog(rng) for _ in range(rng.randint(1, 3))]
    try:
        row = encode(world, *made, seq_len=seq_len, refs=refs, prompts=2, mask_refs=3)
    except EncodeError as error:
        assert "the first turn exceeds" in str(error)
        return
    check_row(row, world[1])
    assert length(row) <= seq_len
    for answer in supervised(row, world[1]):
        body = answer.removesuffix("</s>")
        if answer != body and body:
            report = check_format(body)
            assert report.self_consistent and report.ref_index_ok and report.cot_flag_ok, body


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_nothing_is_lost_in_a_large_row(world, seed):
    rng = random.Random(seed)
    made = [random_dialog(rng) for _ in range(2)]
    sizes = {"seq_len": 2000, "refs": 200, "prompts": 30, "mask_refs": 200}
    counts = Counter()
    row = encode(world, *made, counts=counts, **sizes)
    check_row(row, world[1])
    asked = [turn for one in made for turn in one.turns]
    assert not counts and len(supervised(row, world[1])) == len(asked)
    targets = [t for turn in asked for span in turn.spans for t in span.targets]
    assert row["ref_valid"].sum() == len(targets)


def test_generation_prompt(world):
    folder, words = world
    made = dialog(
        [grounding([("cup", [0])]), grounding([("dog", [1])], question="And now?", prompts=[3])]
    )
    full = encode(world, made)
    row = encode_prompt(made, 1, folder, words, OPTIONS)
    n = length(row)
    assert row["tokens"][:n].tolist() == full["tokens"][:n].tolist()
    assert words.decode(row["tokens"][:n]).endswith(" ASSISTANT:")
    assert full["labels"][n] != IGNORE_ID and full["labels"][n - 1] == IGNORE_ID
    assert (row["labels"] == IGNORE_ID).all() and not row["ref_valid"].any()
    assert row["prompt_valid"].tolist() == [True, False, False] and row["image_valid"].all()
    small = EncodeOptions(spec=replace(SPEC, seq_len=50))
    with pytest.raises(EncodeError, match=r"toy/train/0/0: the question of turn 1"):
        encode_prompt(made, 1, folder, words, small)


def bad_slots(turn):
    return replace(turn, literal="Where is [VPT]?")


def bad_span(turn):
    return replace(turn, spans=[replace(turn.spans[0], end=99)])


def bad_target(turn):
    return replace(turn, spans=[replace(turn.spans[0], targets=[99])])


def bad_task(turn):
    return replace(turn, task_name="grounding")


def bad_text(turn):
    return replace(turn, answer=turn.answer + "<REF>")


@pytest.mark.parametrize("spoil", [bad_slots, bad_span, bad_target, bad_task, bad_text])
def test_bad_records_are_named(world, spoil):
    made = dialog([spoil(grounding([("cup", [0])]))], uid="toy/bad")
    with pytest.raises(EncodeError, match="toy/bad: "):
        encode(world, made)


def test_targets_without_payload_are_named(world):
    for unit, name in ((Unit.BOX, "box"), (Unit.MASK, "mask")):
        made = dialog([grounding([("cup", [0])], unit)], regions=[Region(category="cup")])
        with pytest.raises(EncodeError, match=f"toy/train/0/0: a target has no {name}"):
            encode(world, made)


def test_what_cannot_share_a_row(world):
    other = dialog([text_turn("yes")], uid="other", image=media("b.png"))
    with pytest.raises(EncodeError, match="other show different pictures"):
        encode(world, dialog([text_turn("yes")]), other)
    with pytest.raises(EncodeError, match="regions without a picture"):
        encode(world, dialog([grounding([("cup", [0])])], image=None))
    with pytest.raises(EncodeError, match="no image slot"):
        encode(world, dialog([text_turn("yes")]), images=0, prompts=0)


def test_a_first_question_that_does_not_fit(world):
    with pytest.raises(EncodeError, match=r"the first turn exceeds 30 positions"):
        encode(world, dialog([grounding([("cup", [0])])]), seq_len=30)
    with pytest.raises(EncodeError, match="the first turn exceeds"):
        encode(world, dialog([grounding([("cup", [0])], prompts=[0, 1])]), prompts=1)


def test_picture_errors_name_the_file(world):
    with pytest.raises(ImageError, match=r"missing\.png"):
        encode(world, dialog([text_turn("yes")], image=media("missing.png")))
