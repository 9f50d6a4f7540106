"""Evaluation asks every supervised turn of a dialogue, after its history."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import tiny_dialogs

from data_pipelines import shards
from data_pipelines.catalog import load_catalog
from data_pipelines.encode import EncodeOptions
from data_pipelines.records import encode
from refvlm_jax.batch import Batch, empty_row
from refvlm_jax.cli.data_setup import majority_answer
from refvlm_jax.cli.predict import prompt_batch, prompt_length
from refvlm_jax.cli.truths import Question, select, truth_of, words_of

OPTIONS = EncodeOptions(spec=tiny_dialogs.SPEC, fixed_template=True)
TURNS = [
    tiny_dialogs.grounding([("the red cup", [0])]),
    tiny_dialogs.grounding([("a dog", [1]), ("a cup", [2])], question="Where are the two?"),
    tiny_dialogs.grounding([("a dog", [3])], question="Where is the dog left of it?"),
]


def _dialogs() -> list:
    silent = [*TURNS[:1], tiny_dialogs.grounding([("a cup", [1])])]
    silent[1].supervise = False
    return [
        tiny_dialogs.dialog(TURNS, uid="toy/val/0/0"),
        tiny_dialogs.dialog(silent, uid="toy/val/1/0"),
    ]


def test_the_majority_answer_is_that_of_vqa_alone(tmp_path: Path) -> None:
    answers = {"T03": ["red", "blue", "red", "blue"], "T17": ["green"] * 5}
    with shards.ShardWriter(tmp_path, "toy", records_per_shard=3) as writer:
        for task, given in answers.items():
            for k, answer in enumerate(given):
                turn, uid = tiny_dialogs.text_turn(answer), f"toy/train/{k}/{task}"
                writer.write(encode(tiny_dialogs.dialog([turn], uid, task_id=task)))
    stores = {"toy": writer.shards}
    shards.write_manifest(tmp_path, stores=stores, image_root=str(tmp_path), counts={}, extra={})
    assert majority_answer(tmp_path) == "blue"
    catalog = load_catalog(shards.DialogStore(tmp_path))
    assert catalog.numbers_of({"T03", "T17"}).tolist() == list(range(9))
    assert catalog.numbers_of({"T17"}).tolist() == [4, 5, 6, 7, 8]
    assert catalog.numbers_of({"T01"}).size == 0


def test_every_supervised_turn_is_a_question() -> None:
    chosen = select(_dialogs(), 0)
    assert {question.uid for question in chosen} == {
        "toy/val/0/0", "toy/val/0/0#1", "toy/val/0/0#2", "toy/val/1/0",
    }  # fmt: skip
    assert len(select(_dialogs(), 2)) == 2
    assert len(select(_dialogs(), {"T17": 1, "T03": 2})) == 1
    assert len(select(_dialogs(), {"T03": 2})) == len(chosen)
    assert [q.uid for q in select(reversed(_dialogs()), 0)] == [q.uid for q in chosen]


def test_the_truth_is_that_of_the_turn() -> None:
    dialog = _dialogs()[0]
    truth = truth_of(Question(dialog, 1))
    assert truth.uid == "toy/val/0/0#1" and truth.question == "Where are the two?"
    assert [t.phrase for t in truth.triplets] == ["a dog", "a cup"]
    assert truth.triplets[1].instances[0].box == dialog.regions[2].box


def test_a_prompt_holds_the_history_and_ends_with_the_question(tmp_path: Path) -> None:
    words = tiny_dialogs.tokenizer(tmp_path / "words")
    tiny_dialogs.write_picture(tmp_path)
    dialog = _dialogs()[0]
    asked, batch = prompt_batch([Question(dialog, 1)], 2, tmp_path, words, OPTIONS)
    assert [question.number for question in asked] == [1]
    assert not (batch.segment_ids[1] > 0).any() and not batch.ref_valid.any()
    text = words.decode(batch.tokens[0][np.asarray(batch.segment_ids[0]) > 0].tolist())
    first, second = (text.find(words_of(turn)) for turn in TURNS[:2])
    assert 0 <= first < text.find("the red cup", first) < second
    assert words_of(TURNS[2]) not in text


@pytest.mark.parametrize(
    ("longest", "parts", "length"),
    [(3, 1, 128), (128, 2, 128), (129, 1, 256), (300, 1, 512), (513, 1, 600), (3, 3, 600)],
)
def test_a_batch_of_prompts_is_as_long_as_they_need(longest: int, parts: int, length: int) -> None:
    row = empty_row(dataclasses.replace(tiny_dialogs.SPEC, seq_len=600))
    row["segment_ids"][:longest] = 1
    row["tokens"][:longest] = np.arange(longest)
    batch = Batch.from_dict({name: value[None] for name, value in row.items()})
    assert prompt_length(batch, parts) == length
    cut = batch.cut(length)
    assert cut.tokens.shape == cut.visual_index.shape == (1, length)
    assert (cut.tokens == batch.tokens[:, :length]).all() and cut.images is batch.images
    with pytest.raises(ValueError, match=f"{longest} positions does not fit {longest - 1}"):
        batch.cut(longest - 1)


def test_a_question_that_cannot_be_asked_is_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = tiny_dialogs.tokenizer(tmp_path / "words")
    tiny_dialogs.write_picture(tmp_path)
    lost = tiny_dialogs.dialog(TURNS[:1], uid="toy/val/9/0", image=tiny_dialogs.media("no.png"))
    with caplog.at_level(logging.WARNING):
        asked, _ = prompt_batch(
            [Question(lost), Question(_dialogs()[0])], 2, tmp_path, words, OPTIONS
        )
    assert [question.uid for question in asked] == ["toy/val/0/0"]
    assert "no.png" in caplog.text and "scored as not answered" in caplog.text
