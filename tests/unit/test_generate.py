"""Generation: the cached states are the teacher-forced ones, and rows do not disturb each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from refvlm_jax.batch import TEXT, Batch
from refvlm_jax.infer.generate import generate
from refvlm_jax.models.refvlm import RefVLM
from refvlm_jax.testing.tiny import random_batch, tiny_config, tiny_spec

NEW, EOS = 9, 63


@pytest.fixture(scope="module")
def model() -> RefVLM:
    return RefVLM(tiny_config(), nnx.Rngs(0))


@pytest.fixture(scope="module")
def prompts() -> Batch:
    return random_batch(tiny_spec(tiny_config()), rows=4, seed=1)


def answers(model: RefVLM, batch: Batch, eos: int = EOS) -> tuple[np.ndarray, np.ndarray]:
    graph, state = nnx.split(model)
    run = jax.jit(lambda s, b: generate(nnx.merge(graph, s), b, max_new=NEW, eos_id=eos))
    found = run(state, batch)
    return np.asarray(found.tokens), np.asarray(found.hidden)


def with_answer(batch: Batch, tokens: np.ndarray) -> Batch:
    """The prompt rows with the generated tokens appended, as training would see them."""
    rows, seq = batch.tokens.shape
    arrays = {k: np.array(v) for k, v in batch.asdict().items()}
    pad = [(0, 0), (0, NEW)]
    for name in ("tokens", "positions", "segment_ids", "dialog_ids", "visual_index"):
        fill = TEXT if name == "visual_index" else 0
        arrays[name] = np.pad(arrays[name], pad, constant_values=fill)
    arrays["labels"] = np.full((rows, seq + NEW), -100)
    for b, length in enumerate((np.asarray(batch.segment_ids) > 0).sum(1)):
        place = slice(length, length + NEW)
        arrays["tokens"][b, place] = tokens[b]
        arrays["positions"][b, place] = np.arange(length, length + NEW)
        arrays["segment_ids"][b, place] = 1
    return Batch.from_dict(arrays)


def test_cached_states_equal_teacher_forced_ones(model: RefVLM, prompts: Batch) -> None:
    tokens, hidden = answers(model, prompts, eos=-1)
    graph, state = nnx.split(model)
    rows = jax.tree.map(jnp.asarray, with_answer(prompts, tokens))
    forced, _ = jax.jit(lambda s, b: nnx.merge(graph, s)(b))(state, rows)
    for b, length in enumerate((np.asarray(prompts.segment_ids) > 0).sum(1)):
        np.testing.assert_allclose(hidden[b], forced[b, length : length + NEW], atol=2e-5)
        logits = model.llama.logits(forced[b : b + 1, length - 1 : length + NEW - 1])
        np.testing.assert_array_equal(logits[0].argmax(-1), tokens[b])


def test_a_row_is_answered_the_same_alone_and_in_a_batch(model: RefVLM, prompts: Batch) -> None:
    together, _ = answers(model, prompts)
    for b in range(len(together)):
        alone, _ = answers(model, jax.tree.map(lambda x, b=b: x[b : b + 1], prompts))
        np.testing.assert_array_equal(alone[0], together[b])


def test_room_behind_the_prompts_changes_no_answer(model: RefVLM, prompts: Batch) -> None:
    tokens, hidden = answers(model, prompts)
    longest = int((prompts.segment_ids > 0).sum(axis=1).max())
    assert longest < prompts.tokens.shape[1]
    short_tokens, short_hidden = answers(model, prompts.cut(longest))
    np.testing.assert_array_equal(short_tokens, tokens)
    np.testing.assert_allclose(short_hidden, hidden, atol=2e-5)


def test_generation_stops_at_the_end_token(model: RefVLM, prompts: Batch) -> None:
    free, _ = answers(model, prompts, eos=-1)
    stop = int(free[0, 2])
    stopped, _ = answers(model, prompts, eos=stop)
    end = int((free[0] == stop).argmax())
    np.testing.assert_array_equal(stopped[0, : end + 1], free[0, : end + 1])
    assert (stopped[0, end + 1 :] == 0).all()


def test_dummy_rows_do_not_generate(model: RefVLM, prompts: Batch) -> None:
    dummy = dataclasses.replace(prompts, sample_id=np.array([0, -1, 2, -1], np.int32))
    tokens, _ = answers(model, dummy, eos=-1)
    assert (tokens[[1, 3]] == 0).all() and (tokens[[0, 2]] != 0).any()
