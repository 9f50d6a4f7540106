"""Worked examples of the model's contract: insertion of features, groups of references, states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipelines.turns import EncodedPrompt
from refvlm_jax.config.model import AdapterConfig
from refvlm_jax.infer.answers import read_answer, reference_table
from refvlm_jax.models.adapter import TwoWayAdapter, adapter_table, phrase_spans
from refvlm_jax.models.placement import place
from refvlm_jax.models.units.dispatch import gather_queries, scatter_back, slots
from refvlm_jax.trp.parse import parse_answer
from refvlm_jax.trp.tokens import IMAGE_ID, PROMPT_ID, SPECIAL_TOKENS, Unit

PATCHES, TOKENS, WIDTH, LENGTH = 4, 3, 5, 24
VICUNA = 32000  # entries of its tokenizer


def test_ids_of_the_added_tokens() -> None:
    ids = {token: VICUNA + k for k, token in enumerate(SPECIAL_TOKENS)}
    assert ids == {
        "<Task>": 32000,
        "</Task>": 32001,
        "<Unit>": 32002,
        "</Unit>": 32003,
        "<v>": 32004,
        "</v>": 32005,
        "<Phrase>": 32006,
        "</Phrase>": 32007,
        "<VRT>": 32008,
        "<REF>": 32009,
    }


def inserted(
    ids: list[int], text: np.ndarray, image: np.ndarray, prompts: np.ndarray
) -> np.ndarray:
    """The reference's way: cut the text at the sentinels and put blocks of features between."""
    cuts = [k for k, i in enumerate(ids) if i in (IMAGE_ID, PROMPT_ID)]
    pieces, start, seen = [], 0, 0
    for cut in cuts:
        pieces.append(text[start:cut])
        if ids[cut] == IMAGE_ID:
            pieces.append(image)
        else:
            pieces.append(prompts[seen])
            seen += 1
        start = cut + 1
    return np.concatenate([*pieces, text[start:]])


@pytest.mark.parametrize(
    ("ids", "length"),
    [
        ([5, 6, 7], 3),
        ([5, IMAGE_ID, 6, 7], 3 + PATCHES),
        ([IMAGE_ID, 6], 1 + PATCHES),
        ([5, IMAGE_ID, 6, PROMPT_ID, 7], 3 + PATCHES + TOKENS),
        ([5, IMAGE_ID, PROMPT_ID, 6, PROMPT_ID], 2 + PATCHES + 2 * TOKENS),
        ([PROMPT_ID, 5, IMAGE_ID, PROMPT_ID], 1 + PATCHES + 2 * TOKENS),
    ],
)
def test_features_are_inserted_at_the_sentinels(ids: list[int], length: int) -> None:
    """The one gather gives what cutting and joining gives; padding stays text."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(10, WIDTH)).astype(np.float32)
    image = rng.normal(size=(PATCHES, WIDTH)).astype(np.float32)
    prompts = rng.normal(size=(2, TOKENS, WIDTH)).astype(np.float32)
    words = table[[max(i, 0) for i in ids]]
    want = inserted(ids, words, image, prompts)
    row, seen = EncodedPrompt(), 0
    for i in ids:
        if i == IMAGE_ID:
            row.add_visual(0, PATCHES)
        elif i == PROMPT_ID:
            row.add_visual(PATCHES + seen * TOKENS, TOKENS)
            seen += 1
        else:
            row.add_text([i])
    assert len(want) == len(row.tokens) == length
    tokens = np.array(row.tokens + [0] * (LENGTH - length))
    index = np.array(row.visual + [-1] * (LENGTH - length))
    visual = np.concatenate([image, prompts.reshape(-1, WIDTH)])
    found = np.asarray(place(table[tokens][None], visual[None], index[None]))[0]
    np.testing.assert_array_equal(found[:length], want)
    np.testing.assert_array_equal(found[length:], np.broadcast_to(table[0], found[length:].shape))


# P, p: phrase tags; U, u: unit tags; R: reference; anything else is text.
TAGS = {"P": "<Phrase>", "p": "</Phrase>", "U": "<Unit>", "u": "</Unit>", "R": "<REF>"}


def written(marks: str) -> str:
    """An answer with a word for each dot, and a unit's name between unit tags."""
    words, within = [], False
    for mark in marks:
        within = mark == "U" or (within and mark != "u")
        words.append(TAGS.get(mark) or ("box" if within else " w "))
    return "".join(words)


@pytest.mark.parametrize(
    ("marks", "groups"),
    [
        ("..P.p.U.u.R.R.P..p.U.u.R.", [("w", Unit.BOX, 2), ("w w", Unit.BOX, 1)]),
        ("P.p..P..p.U.u.R", [("w w", Unit.BOX, 1)]),
        ("U.uRR", [(None, Unit.BOX, 2)]),
        ("P.pRR", [("w", None, 2)]),
        ("RR", [(None, None, 2)]),
        ("P.pU.uR...R", [("w", Unit.BOX, 2)]),
    ],
)
def test_groups_of_references(marks: str, groups: list) -> None:
    found = parse_answer(written(marks)).groups
    assert [(g.phrase, g.unit, g.ref_count) for g in found] == groups


@pytest.mark.parametrize(("group", "rows"), [(0, [1, 2, 3, 9, 11]), (1, [13, 14, 15, 16, 22])])
def test_the_adapter_reads_one_position_earlier(group: int, rows: list[int]) -> None:
    """A reference's result depends on the states that predicted its phrase and its group's
    references, and on no others."""
    marks = "..P.p.U.u.R.R.P..p.U.u.R."
    config = AdapterConfig(
        groups=2, phrase_length=4, ref_length=2, projection_dim=8, layers=1, heads=2, mlp_dim=8
    )
    adapter = TwoWayAdapter(config, 8, nnx.Rngs(0))
    tokens = jnp.asarray([["Pp".find(m) + 1 for m in marks]])
    refs = jnp.asarray([[10, 12, 23]]), jnp.asarray([[0, 0, 1]]), jnp.ones((1, 3), bool)
    spans = phrase_spans(tokens, *refs, open_id=1, close_id=2)
    assert spans.tolist() == [[[2, 5], [2, 5], [14, 18]]]
    table = adapter_table(spans, refs[0], refs[1], jnp.zeros((1, 3), int), refs[2], config)
    rng = np.random.default_rng(0)
    patches, weights = rng.normal(size=(1, 1, 4, 8)), jnp.asarray(rng.normal(size=8))
    hidden = jnp.asarray(rng.normal(size=(1, len(marks), 8)), jnp.float32)

    def score(hidden: jax.Array) -> jax.Array:
        states = adapter(hidden, jnp.asarray(patches, jnp.float32), table).states[0]
        return (states[refs[1][0] == group] @ weights).sum()

    grad = np.abs(jax.jit(jax.grad(score))(hidden)[0]).max(-1)
    assert np.flatnonzero(grad).tolist() == rows


def test_without_adapter_states_are_read_at_the_reference_itself() -> None:
    """In text order at the top of the slots, zeros below, those beyond the slots left out."""
    hidden = jnp.arange(1.0, 27.0)[None, :, None]
    pos, valid = jnp.asarray([[10, 12, 20, 23]]), jnp.ones((1, 4), bool)
    unit = jnp.asarray([[Unit.BOX, Unit.BOX, Unit.MASK, Unit.BOX]])
    image = jnp.zeros((1, 4), int)
    boxes = slots(valid, unit, image, Unit.BOX, 1, 2)
    assert gather_queries(hidden, pos, boxes)[0, :, 0].tolist() == [11, 13]
    masks = slots(valid, unit, image, Unit.MASK, 1, 3)
    assert gather_queries(hidden, pos, masks)[0, :, 0].tolist() == [21, 0, 0]
    assert masks.valid[0, 0].tolist() == [True, False, False]
    answered = scatter_back(jnp.asarray([[[5.0], [6.0]]]), boxes)
    assert answered[0, :, 0].tolist() == [5, 6, 0, 0]


class Words:
    """A tokenizer whose ids are places in a list of words."""

    eos_id, pad_id = 0, 0
    vocabulary = ["</s>", *SPECIAL_TOKENS, "dog", "cat", "box", "(", ")", "[0]", "[1]"]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.vocabulary[i] for i in ids)

    def id_of(self, token: str) -> int:
        return self.vocabulary.index(token)


def test_generated_references_are_counted_from_the_first_new_token() -> None:
    """What follows the end token counts for nothing; a group without unit takes the commanded."""
    words = Words()
    first = ["<Phrase>", "dog", "</Phrase>", "(", "<Unit>", "box", "</Unit>", "[0]", "<REF>"]
    second = ["[1]", "<REF>", ")", "<Phrase>", "cat", "</Phrase>", "[0]", "<REF>"]
    ids = [words.id_of(w) for w in [*first, *second, "</s>", "<REF>"]]
    answer = read_answer(ids, [0.0] * len(ids), True, words, Unit.MASK)
    found = [(r.group, r.position, r.unit, r.phrase) for r in answer.references]
    assert found == [
        (0, 8, Unit.BOX, "dog"),
        (0, 10, Unit.BOX, "dog"),
        (1, 16, Unit.MASK, "cat"),
    ]
    table = reference_table([answer], slots=4)
    assert table.pos[0].tolist() == [8, 10, 16, 0]
    assert table.valid[0].tolist() == [True, True, True, False]
    assert table.unit[0, :3].tolist() == [Unit.BOX, Unit.BOX, Unit.MASK]
