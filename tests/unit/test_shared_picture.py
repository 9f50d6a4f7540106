"""Dialogues side by side in a row: each is what it would be alone."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_dialogs import SPEC, dialog, grounding, text_turn, tokenizer, write_picture

from data_pipelines.encode import EncodeOptions, encode_prompt, encode_row
from refvlm_jax.batch import TEXT, Batch
from refvlm_jax.cli.data_setup import encode_options
from refvlm_jax.config.schema import RunConfig
from refvlm_jax.models.objective import loss_counts, loss_sums
from refvlm_jax.models.refvlm import RefVLM
from refvlm_jax.models.units.queries import query_codes, visible_queries
from refvlm_jax.testing.tiny import tiny_config
from refvlm_jax.trp.tokens import IMAGE_SLOT, Unit

IMAGE, PATCHES, PROMPT = 32, 16, 4
LIMITS = replace(
    SPEC, seq_len=512, image_size=IMAGE, image_tokens=PATCHES, prompts=4, prompt_tokens=PROMPT,
    refs=12, mask_refs=6, mask_size=IMAGE,
)  # fmt: skip
OPTIONS = EncodeOptions(spec=LIMITS, shared_picture=True)
DIALOGS = [
    dialog([grounding([("red cup", [0, 1])]), text_turn("two", "And how many?")]),
    dialog([text_turn("a dog and a cup", "What is it?")]),
    dialog([grounding([("dog", [2]), ("cup", [0])], unit=Unit.MASK)]),
    dialog([grounding([("dog", [2])])]),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_picture(folder)
    return folder, tokenizer(folder / "tokenizer")


@pytest.fixture(scope="module")
def model(world):
    base = tiny_config()
    assert base.box and base.mask and base.region_prompts
    config = replace(
        base,
        region_prompts=replace(base.region_prompts, num_patches=PROMPT, mask_token=False),
        llama=replace(base.llama, vocab_size=world[1].vocab_size),
        box=replace(base.box, mask_padding_queries=True, num_queries=8),
        mask=replace(base.mask, mask_padding_queries=True, num_queries=8),
    )
    return RefVLM(config, nnx.Rngs(0))


def encode(world, dialogs, options=OPTIONS):
    return encode_row(dialogs, *world, options, None)


def batch(*rows):
    return Batch.from_dict({name: np.stack([row[name] for row in rows]) for name in rows[0]})


def test_a_row_has_one_picture_and_positions_restart_behind_it(world):
    row = encode(world, DIALOGS)
    length = int((row["segment_ids"] > 0).sum())
    ids, positions = row["dialog_ids"][:length], row["positions"][:length]
    assert (row["visual_index"] != TEXT).sum() == PATCHES
    assert (ids[row["visual_index"][:length] != TEXT] == 0).all()
    shared = int((ids == 0).sum())
    assert ids.tolist() == sorted(ids.tolist()) and set(ids.tolist()) == {0, 1, 2, 3, 4}
    for number in range(1, 5):
        own = positions[ids == number]
        assert own.tolist() == list(range(shared, shared + len(own)))


def test_the_opening_of_a_question_is_the_opening_of_training(world):
    asked = encode_prompt(DIALOGS[3], 0, *world, OPTIONS)
    learned = encode(world, [DIALOGS[3]])
    length = int((asked["segment_ids"] > 0).sum())
    for name in ("tokens", "positions", "visual_index"):
        np.testing.assert_array_equal(asked[name][:length], learned[name][:length], err_msg=name)
    picture = np.flatnonzero(asked["visual_index"] != TEXT)
    question = world[1].decode(asked["tokens"][picture[-1] + 1 : length].tolist())
    assert "Where is the cup?" in question and IMAGE_SLOT not in question


def test_losses_are_the_sum_of_each_dialogue_alone(world, model):
    """No answer, no reference and no query slot of another dialogue changes anything."""
    together = batch(encode(world, DIALOGS))
    alone = batch(*(encode(world, [one]) for one in DIALOGS))
    found, want = (jax.jit(loss_sums)(model, b, None) for b in (together, alone))
    counts = [loss_counts(model.config, b) for b in (together, alone)]
    assert counts[0] == counts[1] and all(value > 0 for value in counts[0].values())
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_one_conversation_differs(world, model):
    """The same row without walls: the test above can fail."""
    row = encode(world, DIALOGS)
    open_row = row | {"dialog_ids": np.zeros_like(row["dialog_ids"])}
    walled, opened = (jax.jit(loss_sums)(model, batch(r), None) for r in (row, open_row))
    for name in walled:
        assert abs(float(walled[name] / opened[name]) - 1) > 1e-4, name


def test_empty_slots_that_take_part_are_refused():
    config = RunConfig(name="walls")
    config = replace(config, data=replace(config.data, shared_picture=True))
    with pytest.raises(ValueError, match=r"model\.box\.mask_padding_queries"):
        encode_options(config)


def test_query_slots_are_counted_in_their_dialogue():
    valid = jnp.array([[True, True, True, True, False, False]])
    dialogs = jnp.array([[1, 2, 2, 1, 0, 0]])
    seen = visible_queries(valid, dialogs, hide_empty=True)
    assert seen is not None
    assert np.asarray(seen[0, :4, :4]).tolist() == [
        [True, False, False, True],
        [False, True, True, False],
        [False, True, True, False],
        [True, False, False, True],
    ]
    assert not seen[:, :, 4:].any()
    table = jnp.arange(6.0)[:, None]
    assert query_codes(table, valid, dialogs)[0, :, 0].tolist() == [0, 0, 1, 1, 4, 5]
    assert query_codes(table, valid, None) is table
