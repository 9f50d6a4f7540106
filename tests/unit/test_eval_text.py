"""Text metrics: reference values of caption metrics, VQA normalisation and agreement."""

import pytest

from refvlm_jax.eval.scorers.caption import text_metrics
from refvlm_jax.eval.text.bleu import bleu
from refvlm_jax.eval.text.cider import cider
from refvlm_jax.eval.text.phrase import exact, normalise, token_f1
from refvlm_jax.eval.text.ptb import tokenize
from refvlm_jax.eval.text.vqa_answer import extract, soft_accuracy
from refvlm_jax.eval.text.vqa_answer import normalise as vqa_normalise

FIRST = [
    "A man rides a red horse on the beach.",
    "Two dogs play with a yellow ball in the park.",
    "A plate of food with rice and beans.",
]
SECOND = [
    "A person on horseback near the ocean.",
    "A pair of dogs playing fetch.",
    "Rice and beans on a white plate.",
]
CAPTIONS = [
    "a man riding a horse on a beach",
    "two dogs play with a ball in the grass",
    FIRST[2],
]


def tokens(texts):
    return [tokenize(text) for text in texts]


def test_cider_reference_values():
    scores = cider(tokens(CAPTIONS), [[t] for t in tokens(FIRST)])
    assert scores == pytest.approx([2.43940022, 5.74682617, 10.0], abs=1e-8)
    assert sum(scores) / 3 == pytest.approx(6.062075463606985, abs=1e-9)


def test_cider_with_two_references():
    scores = cider(tokens(CAPTIONS), list(zip(tokens(FIRST), tokens(SECOND), strict=True)))
    assert scores == pytest.approx([1.19731154, 3.08998593, 6.55307781], abs=1e-8)
    assert sum(scores) / 3 == pytest.approx(3.613458427364757, abs=1e-9)


def test_cider_corner_cases():
    assert cider(tokens(CAPTIONS[:1]), [[t] for t in tokens(FIRST[:1])]) == [0.0]
    assert cider([[], *tokens(CAPTIONS[1:])], [[t] for t in tokens(FIRST)])[0] == 0.0
    assert cider([], []) == []
    assert text_metrics([], []) == {"cider": 0.0, "bleu4": 0.0}


def test_bleu_reference_values():
    expected = [0.8123423848, 0.7150428472, 0.6286211532, 0.5627951784]
    values = bleu(tokens(CAPTIONS), [[t] for t in tokens(FIRST)])
    assert values == pytest.approx(expected, abs=1e-9)
    assert bleu([[], []], [[t] for t in tokens(FIRST[:2])]) == [0.0] * 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "it's a dog-like, e.g. (small) thing </s>",
            "it 's a dog-like e.g. -lrb- small -rrb- thing </s>",
        ),
        ("A man</s>", "a man </s>"),
        ("I can't, they don't; we'll see...", "i ca n't they do n't we 'll see"),
        ('He said: "1,000 or 3.5?" -- no!', "he said 1,000 or 3.5 no"),
        ("Mr. Smith cannot go to the U.S. today.", "mr. smith can not go to the u.s. today"),
        ("the dogs' bowl", "the dogs bowl"),
        ("", ""),
    ],
)
def test_tokens(text, expected):
    assert " ".join(tokenize(text)) == expected


def test_phrase_similarity():
    assert token_f1("the red circle", "Red Circle.") == 1.0
    assert token_f1("red circle", "blue circle") == 0.5
    assert token_f1("", "") == 0.0 and exact("", "") == 0.0
    assert exact("A red circle", "red  circle") == 1.0 and exact("red", "blue") == 0.0
    assert normalise("a") == "a"


def test_vqa_agreement_reference_values():
    people = ["yes"] * 3 + ["no"] * 7
    assert soft_accuracy("yes", people) == pytest.approx(0.9, abs=1e-12)
    assert soft_accuracy("no", people) == pytest.approx(1.0, abs=1e-12)
    assert soft_accuracy("maybe", people) == 0.0
    assert soft_accuracy("no", ["no"]) == 1.0


@pytest.mark.parametrize("answer", ["yes", "no", "blue", "red"])
def test_vqa_agreement_is_the_mean_over_left_out_people(answer):
    people = ["yes"] + ["no"] * 2 + ["blue"] * 4 + ["red"] * 3
    parts = []
    for k in range(10):
        others = people[:k] + people[k + 1 :]
        parts.append(min(others.count(answer) / 3, 1))
    assert soft_accuracy(answer, people) == pytest.approx(sum(parts) / 10)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 3.5 metres.", "3.5 metres"),
        ("People hold umbrellas. So the answer is yes.", "yes"),
        ("the answer is: No!</s>", "No"),
        ("two", "two"),
        ("...", "..."),
        ("", ""),
    ],
)
def test_answer_extraction(text, answer):
    assert extract(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The  Red-Ball!", "red ball"),
        ("two", "2"),
        ("None", "0"),
        ("1,000", "1000"),
        ("dont", "don't"),
        ("3.5", "3.5"),
        ("a dog.", "dog"),
        ("red/blue", "red blue"),
        ("yes, it is", "yes it is"),
    ],
)
def test_answer_normalisation(text, answer):
    assert vqa_normalise(text) == answer
