"""Who knows the truth scores perfectly: rendered, parsed back, decoded, stored and scored."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.build import build, shapes_all_recipe
from data_pipelines.records import Dialog
from data_pipelines.shapes_world import generate
from data_pipelines.shapes_world.formats import write_formats
from data_pipelines.shards import DialogStore, read_manifest
from data_pipelines.tasks import TASKS
from refvlm_jax.cli.truths import Question, truth_of
from refvlm_jax.eval.oracle import oracle, targets
from refvlm_jax.eval.record_types import Instance, Triplet, Truth
from refvlm_jax.eval.records import read_predictions, read_truths, write_records
from refvlm_jax.eval.score import ScoreTable, score
from refvlm_jax.geometry import PaddedSquare
from refvlm_jax.rle import decode, encode

ONE = 1 - 1e-6
PERFECT = {
    **dict.fromkeys(("T01", "T02", "T05"), ("cider10", "bleu4")),
    **dict.fromkeys(("T03", "T04", "T10", "T11", "X2"), ("accuracy", "soft_accuracy")),
    **dict.fromkeys(("T06", "T07", "T08", "T09"), ("accuracy",)),
    "T12": ("accuracy", "cider10", "bleu4"),
    **dict.fromkeys(("T13", "T15"), ("ap", "ap50", "ap75")),
    **dict.fromkeys(("T14", "T16"), ("ap", "ap50", "ap75")),
    **dict.fromkeys(("T17", "T21", "X3"), ("acc50", "acc90", "miou")),
    **dict.fromkeys(("T18", "T22"), ("ciou", "giou", "p90")),
    **dict.fromkeys(
        ("T19", "T20"),
        ("recall", "recall_exact", "recall_hungarian", "miou", "ap50", "cider10", "bleu4"),
    ),
    **dict.fromkeys(("T23", "T24"), ("ap", "ap50", "oks", "pck05")),
    "T25": ("delta1", "delta3"),
    **dict.fromkeys(("X1", "X4"), ("accuracy", "recall", "recall_exact", "miou", "ap50", "bleu4")),
}
"""Metrics that must be 1 (`cider10`: CIDEr of 10)."""


@pytest.fixture(scope="module")
def truths(tmp_path_factory: pytest.TempPathFactory) -> list[Truth]:
    """The first question of every dialogue of a world in all formats."""
    root = tmp_path_factory.mktemp("oracle")
    generate(root / "world", level=1, scenes={"val": 8}, seed=3, workers=1, progress=False)
    write_formats(root / "world", "val")
    build(shapes_all_recipe(root / "world", "val"), root / "out", progress=False)
    store, seen = DialogStore(root / "out"), set()
    kept = []
    for dialog in (store[k] for k in range(len(store))):
        # A picture with several captions has other references than its own answer.
        if dialog.task_id not in ("T01", "T02") or (dialog.task_id, picture(dialog)) not in seen:
            seen.add((dialog.task_id, picture(dialog)))
            kept.append(dialog)
    images = Path(read_manifest(root / "out")["image_root"])
    found = [truth_of(Question(dialog), image_root=images) for dialog in kept]
    return [replace(t, references=[]) if t.task_id in ("T01", "T02") else t for t in found]


def picture(dialog: Dialog) -> str:
    assert dialog.image is not None
    return dialog.image.path


def through_the_model(truth: Truth) -> list[Instance]:
    """The true objects as a model that decodes exactly gives them: single precision, own masks."""
    square = PaddedSquare(truth.width, truth.height)
    return [_decoded(found, square) for found in targets(truth)]


def _decoded(found: Instance, square: PaddedSquare) -> Instance:
    box, points, mask = found.box, found.keypoints, found.rle
    if box is not None:
        model = square.boxes_to_model(np.array(box)).astype(np.float32)
        box = tuple(square.boxes_to_pixels(model).tolist())
    if points is not None:
        model = square.points_to_model(np.array(points)).astype(np.float32)
        points = square.points_to_pixels(model).tolist()
    if mask is not None:
        pixels = decode(mask["counts"].encode("ascii"), *mask["size"])
        mask = {"size": mask["size"], "counts": encode(pixels).decode("ascii")}
    return replace(found, box=box, keypoints=points, rle=mask)


@pytest.fixture(scope="module")
def table(truths: list[Truth], tmp_path_factory: pytest.TempPathFactory) -> ScoreTable:
    folder = tmp_path_factory.mktemp("records")
    write_records(folder / "t.jsonl", truths)
    answers = [oracle(truth, through_the_model(truth)) for truth in truths]
    write_records(folder / "p.jsonl", answers)
    return score(read_truths(folder / "t.jsonl"), read_predictions(folder / "p.jsonl"), resamples=0)


def test_every_task_is_asked(truths: list[Truth]) -> None:
    counts = defaultdict(int)
    for truth in truths:
        counts[truth.task_id] += 1
    assert set(counts) == set(TASKS) == set(PERFECT) and min(counts.values()) > 1


@pytest.mark.parametrize("task", TASKS)
def test_the_oracle_is_perfect(table: ScoreTable, task: str) -> None:
    found = table[task]
    for metric in PERFECT[task]:
        value = found["cider"] / 10 if metric == "cider10" else found[metric]
        assert value >= ONE, (metric, value)
    assert found["format_valid"] == 1 and found["n_missing"] == found["n_parse_fail"] == 0
    if task == "T25":
        assert found["abs_rel"] == found["rmse"] == 0


def test_phrases_and_numbers_are_perfect(table: ScoreTable) -> None:
    whole = table["all"]
    assert whole["self_consistent"] == whole["phrase_precision"] == whole["phrase_recall"] == 1
    assert whole["count_exact"] == 1 and whole["count_mae"] == 0 and whole["truncated_rate"] == 0


def test_one_wrong_object_is_noticed(truths: list[Truth]) -> None:
    # The same text with each object a quarter of the picture away.
    for task, metric in (("T17", "acc50"), ("T13", "ap50"), ("T19", "recall"), ("X3", "acc50")):
        own = [t for t in truths if t.task_id == task]
        moved = {
            t.uid: oracle(t, [replace(i, box=tuple(v + t.width / 4 for v in i.box or ()))
                              for i in targets(t)])
            for t in own
        }  # fmt: skip
        assert score(own, moved, resamples=0)[task][metric] < 0.5


def test_nested_phrases_own_their_objects_in_the_order_of_the_references() -> None:
    boxes = [Instance(box=(float(k), 0.0, k + 9.0, 9.0)) for k in range(3)]
    truth = Truth(
        uid="u", task_id="T19", image="a.jpg", width=60, height=50, question="?",
        answer="man in hat.",
        raw="<Task>\nUnit decode (True). Class name, target unit and number:\n"
        "- Name: hat Unit: box Num: 1\n- Name: man in hat Unit: box Num: 2\n</Task>\n"
        "<Phrase>man in <Phrase>hat</Phrase>(<Unit>box</Unit>[0]<REF>)</Phrase>"
        "(<Unit>box</Unit>[0]<REF>[1]<REF>).",
        triplets=[
            Triplet(phrase="man in hat", unit="box", char_span=(0, 10), instances=boxes[:2]),
            Triplet(phrase="hat", unit="box", char_span=(7, 10), instances=boxes[2:]),
        ],
    )  # fmt: skip
    found = oracle(truth)
    owned = {triplet.phrase: triplet.instances for triplet in found.triplets}
    assert owned == {"hat": boxes[2:], "man in hat": boxes[:2]} and found.plain == truth.answer
    with pytest.raises(ValueError, match="3 references for 2 objects"):
        oracle(truth, boxes[:2])
