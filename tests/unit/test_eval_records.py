"""Records on disk: round trip, strict errors with file and line, shards, duplicates."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from eval_world import perfect, shifted, world
from hypothesis import given
from hypothesis import strategies as st

from refvlm_jax.eval.records import (
    Instance,
    Triplet,
    parse_prediction,
    parse_truth,
    read_predictions,
    read_truths,
    write_records,
)

TRUTHS = world(2)


def lines_of(tmp_path, records):
    path = tmp_path / "some.jsonl"
    write_records(path, records)
    return path, path.read_text().splitlines()


def test_round_trip_is_exact(tmp_path):
    predictions = [shifted(truth, 0.1 + 1 / 3) for truth in TRUTHS]
    odd = replace(
        predictions[0], plain="\u2028 \ud800 é 🐕\n", plan=[{"name": "a", "unit": "", "num": 0}]
    )
    predictions[0] = replace(odd, gen={"greedy": True, "max_new": 5}, seed=3)
    path, _ = lines_of(tmp_path, predictions)
    assert list(read_predictions(path).values()) == predictions
    path, _ = lines_of(tmp_path, TRUTHS)
    assert read_truths(path) == TRUTHS


def test_shards_join_and_blank_lines_are_skipped(tmp_path):
    predictions = [perfect(truth) for truth in TRUTHS]
    one, two = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_records(one, predictions[:5])
    write_records(two, predictions[3:])  # identical duplicates
    one.write_text("\n" + one.read_text() + "\n   \n")
    assert list(read_predictions(one, two).values()) == predictions


def test_different_records_of_one_uid_are_refused(tmp_path):
    record = perfect(TRUTHS[0])
    path, _ = lines_of(tmp_path, [record, perfect(TRUTHS[1]), replace(record, plain="other")])
    with pytest.raises(ValueError, match=rf"{path}:3: uid '{record.uid}' differs .*{path}:1"):
        read_predictions(path)


BAD = {
    "{": "Expecting",
    "[]": "expected an object",
    '{"uid": 3}': "uid is 3; expected a string",
    '{"uid": "a"}': "field task_id is missing",
    "\udcff": "utf-8",
    "[" * 100_000: "",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_line_is_named(tmp_path, line):
    path, lines = lines_of(tmp_path, [perfect(truth) for truth in TRUTHS[:2]])
    content = "\n".join([lines[0], "", line, lines[1]])
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=f"{path}:3: .*{BAD[line]}"):
        read_predictions(path)


FAULTS = [
    (("width",), 0, "width is 0"),
    (("height",), True, "height is True; expected a whole"),
    (("finish",), "stop", "finish is 'stop'; expected one of eos, length"),
    (("triplets", 0, "char_span"), [4, 2], "ends before it starts"),
    (("triplets", 0, "char_span"), [1], "expected a list of 2"),
    (("triplets", 0, "instances", 0, "box"), [0, 0, 1], "expected a list of 4"),
    (("triplets", 0, "instances", 0, "box", 2), float("nan"), r"box\[2\] is nan"),
    (("triplets", 0, "instances", 0, "box", 2), 10**400, "expected a finite number"),
    (("triplets", 0, "instances", 0, "rle"), {"size": [4, 4], "counts": "é"}, "rle"),
    (("triplets", 0, "instances", 0, "rle"), {"size": [4, 4], "counts": "01"}, "expected 4 x 4"),
    (("triplets", 0, "instances", 0, "sore"), 1.0, "unknown field sore"),
    (("plan",), [{"name": "a", "unit": "box"}], r"plan\[0\].num is missing"),
    (("extra",), 1, "unknown field extra in the record"),
]


@pytest.mark.parametrize(("place", "value", "message"), FAULTS)
def test_faulty_field_is_named(tmp_path, place, value, message):
    truth = next(t for t in TRUTHS if t.task_id == "T17")
    path, lines = lines_of(tmp_path, [perfect(truth)])
    content = json.loads(lines[0])
    owner = content
    for key in place[:-1]:
        owner = owner[key]
    owner[place[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{path}:1: .*{message}"):
        read_predictions(path)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = ["uid", "width", "triplets", "plan", "gen", "ignore", "references", "seed"]


@given(JSON, st.sampled_from(NAMES))
def test_any_json_is_read_or_refused(value, field):
    for parse, record in ((parse_prediction, perfect(TRUTHS[5])), (parse_truth, TRUTHS[5])):
        content = json.loads(json.dumps(asdict(record)))
        for candidate in (value, content | {field: value}):
            try:
                parse(candidate)
            except ValueError as error:
                assert str(error)


def test_writer_refuses_what_cannot_be_read_and_keeps_the_old_file(tmp_path):
    path, _ = lines_of(tmp_path, [TRUTHS[0]])
    before = path.read_bytes()
    for box in ((0.0, 0.0, float("nan"), 1.0), (np.float32(0), 0.0, 1.0, 1.0)):
        bad = Triplet(phrase="a", unit="box", char_span=(0, 1), instances=[Instance(box=box)])
        with pytest.raises(ValueError, match="cannot be written"):
            write_records(path, [replace(TRUTHS[1], triplets=[bad])])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["some.jsonl"]
