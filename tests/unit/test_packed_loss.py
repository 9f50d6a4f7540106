"""Dialogues packed into a row, each with its picture: each has the loss it has alone."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx
from test_shared_picture import DIALOGS, LIMITS, batch
from tiny_dialogs import HEIGHT, WIDTH, dialog, text_turn, tokenizer, write_picture

from data_pipelines.encode import EncodeOptions, encode_row
from data_pipelines.join import join_rows
from data_pipelines.records import Prompt, PromptKind
from refvlm_jax.batch import empty_row
from refvlm_jax.models.objective import loss_counts, loss_sums
from refvlm_jax.models.refvlm import RefVLM
from refvlm_jax.testing.tiny import tiny_config

SPEC = replace(LIMITS, seq_len=576, images=len(DIALOGS), prompts=4, depth_refs=2)


LOSS = jax.jit(loss_sums)


def padded(row):
    """A batch of the row and of empty ones: one compiled program for all that is compared here."""
    return batch(row, *[empty_row(SPEC)] * len(DIALOGS))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A row of every dialogue, all about pictures of their own, and one without a picture."""
    root = tmp_path_factory.mktemp("world")
    words = tokenizer(root / "tokenizer")
    made = []
    for k, one in enumerate(DIALOGS):
        write_picture(root, f"{k}.png")
        image = replace(one.image, path=f"{k}.png", width=WIDTH, height=HEIGHT)
        made.append(replace(one, image=image))
    made.insert(2, dialog([text_turn("a dog", "What?")], image=None, regions=[]))
    box = Prompt(region=3, kind=PromptKind.BOX)
    shown = replace(made[0].turns[0], literal="Where is [VPT]?", prompts=[box])
    made[0] = replace(made[0], turns=[shown, *made[0].turns[1:]])
    options = EncodeOptions(spec=SPEC)
    return [encode_row([one], root, words, options, None) for one in made], words.vocab_size


@pytest.fixture(scope="module")
def model(rows):
    base = tiny_config()
    prompts = replace(base.region_prompts, num_patches=LIMITS.prompt_tokens, mask_token=False)
    llama = replace(base.llama, vocab_size=rows[1])
    return RefVLM(replace(base, region_prompts=prompts, llama=llama), nnx.Rngs(0))


def test_losses_are_the_sum_of_each_dialogue_alone(rows, model):
    """Empty query slots take part here, as released: every picture has its own."""
    parts = rows[0]
    together, alone = padded(join_rows(parts, SPEC)), batch(*parts)
    assert int(together.image_valid.sum()) == len(DIALOGS) and together.segment_ids.max() == 8
    found, want = (LOSS(model, b, None) for b in (together, alone))
    counts = [loss_counts(model.config, b) for b in (together, alone)]
    assert counts[0] == counts[1]
    assert [name for name, value in counts[0].items() if not value] == ["depth_affine"]
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_without_segments_they_differ(rows, model):
    """The same row as one segment: the test above can fail."""
    row = join_rows(rows[0], SPEC)
    opened = row | {"segment_ids": np.minimum(row["segment_ids"], 1)}
    walled, seen = (LOSS(model, padded(r), None) for r in (row, opened))
    for name in ("llm", "box_l1", "mask_dice"):
        assert abs(float(walled[name] / seen[name]) - 1) > 1e-4, name
