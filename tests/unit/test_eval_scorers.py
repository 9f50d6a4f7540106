"""Scorers: reference values, perfect and missing answers, independence of order."""

import json
import math
import random
import sys
from dataclasses import replace

import numpy as np
import pytest
from eval_world import SIDE, by_uid, masked, perfect, shifted, world
from rich.console import Console

from refvlm_jax.eval.baselines import trivial_baselines
from refvlm_jax.eval.bootstrap import ratio_interval
from refvlm_jax.eval.masks import iou_matrix, load_mask
from refvlm_jax.eval.records import Instance, Triplet
from refvlm_jax.eval.score import ScoreTable, print_table, score, write_results
from refvlm_jax.eval.scorers import coco, detection, grounded, rec, res
from refvlm_jax.eval.tasks import TASKS

TRUTHS = world(4)
ERRORS = ("n", "n_missing", "n_parse_fail", "n_images", "n_unknown", "count_mae")


def of(task, truths=TRUTHS):
    return [truth for truth in truths if truth.task_id == task]


def boxed(truth, *boxes):
    instances = [Instance(box=box) for box in boxes]
    return replace(
        perfect(truth),
        triplets=[Triplet(phrase="target", unit="box", char_span=(0, 6), instances=instances)],
    )


# Whole runs


def test_truth_as_prediction_is_perfect():
    table = score(TRUTHS, by_uid(map(perfect, TRUTHS)), resamples=50)
    for task, metrics in table.items():
        for name, value in metrics.items():
            if name in ("n", "n_images", "ar1"):  # ar1 allows one object a phrase and picture
                assert value > 0.0
            else:
                assert value == pytest.approx(best(name), abs=1e-6), (task, name)
    assert table.intervals["T17"]["acc50"] == (1.0, 1.0)
    assert set(table) == {truth.task_id for truth in TRUTHS} | {"all"}


def best(metric):
    if metric.endswith("_rate") or metric.startswith("n_") or metric == "count_mae":
        return 0.0
    return 10.0 if metric == "cider" else 1.0


@pytest.mark.parametrize("given", ["nothing", "empty answers"])
def test_no_answers_score_zero(given):
    empty = [replace(perfect(t), raw="", plain="", triplets=[]) for t in TRUTHS]
    table = score(TRUTHS, by_uid(empty) if given == "empty answers" else {}, resamples=50)
    for task, metrics in table.items():
        for name, value in metrics.items():
            assert math.isfinite(value)
            if name not in ERRORS and not name.startswith(("no_box", "no_mask")):
                assert value == 0.0, (task, name)
        assert metrics["n_missing"] == (metrics["n"] if given == "nothing" else 0)
        assert metrics["n_parse_fail"] == metrics["n"]
    assert all(
        bounds == (0.0, 0.0) for task in table.intervals.values() for bounds in task.values()
    )


def test_order_of_records_does_not_matter():
    rng = random.Random(0)
    predictions = [shifted(truth, rng.choice([0, 2, 5, 15])) for truth in TRUTHS]
    expected = score(TRUTHS, by_uid(predictions), resamples=200)
    for _ in range(3):
        truths = rng.sample(TRUTHS, len(TRUTHS))
        table = score(truths, by_uid(rng.sample(predictions, len(predictions))), resamples=200)
        assert table == expected and table.intervals == expected.intervals


@pytest.mark.parametrize("task", sorted({truth.task_id for truth in TRUTHS}))
def test_a_missing_answer_is_wrong(task):
    truths = of(task)
    complete = by_uid(map(perfect, truths))
    partial = {uid: p for uid, p in complete.items() if uid != truths[1].uid}
    headline = TASKS[task].headline
    before, after = (score(truths, given)[task] for given in (complete, partial))
    assert after["n"] == len(truths) and after["n_missing"] == 1
    assert after[headline] < before[headline]
    assert after["format_valid"] == pytest.approx(3 / 4)


def test_records_that_do_not_belong_together_are_refused():
    truth = of("T17")[0]
    with pytest.raises(ValueError, match="task_id is 'T18'"):
        score([truth], {truth.uid: replace(perfect(truth), task_id="T18")})
    with pytest.raises(ValueError, match="occurs twice"):
        score([truth, truth], {})
    with pytest.raises(ValueError, match="has no box"):
        score([replace(truth, triplets=[])], {})
    assert score([truth], {"other": perfect(truth)})["all"]["n_unknown"] == 1


def test_table_is_json_and_results_are_written(tmp_path):
    predictions = by_uid(shifted(truth, 3) for truth in TRUTHS[:-3])
    trivial = {task: b.metrics for task, b in trivial_baselines(TRUTHS).items()}
    table = score(TRUTHS, predictions, baselines={"trivial": trivial}, resamples=50)
    assert ScoreTable(json.loads(json.dumps(table))) == table
    write_results(tmp_path / "results", table, preds_sha="abc")
    written = json.loads((tmp_path / "results" / "T18.json").read_text())
    assert written["metrics"]["ciou"] == table["T18"]["ciou"]
    assert written["ci"]["ciou"] == list(table.intervals["T18"]["ciou"])
    assert written["n"] == 4 and written["preds_sha"] == "abc"
    assert written["baselines"]["trivial"]["ciou"] == trivial["T18"]["ciou"]
    assert len(list((tmp_path / "results").iterdir())) == len(table)


def test_printed_table(capsys):
    table = score(of("T17"), {}, baselines={"trivial": {"T17": {"acc50": 0.25}}}, resamples=10)
    print_table(table, title="val", console=Console(width=120))
    shown = capsys.readouterr().out
    assert "T17 Referring" in shown and "0.250" in shown and "val" in shown
    assert "n_missing" in shown and "n_unknown" not in shown


# One box


def test_only_the_first_box_counts():
    truth = of("T17")[0]
    good, bad = truth.triplets[0].instances[0].box, (0.0, 0.0, 1.0, 1.0)
    assert rec.score([truth], {truth.uid: boxed(truth, bad, good)})["acc50"] == 0.0
    metrics = rec.score([truth], {truth.uid: boxed(truth, good, bad)})
    assert metrics["acc90"] == 1.0 and metrics["multi_box_rate"] == 1.0


def test_iou_must_exceed_one_half():
    truth = boxed(of("T17")[0], (0.0, 0.0, 40.0, 10.0))
    truth = replace(of("T17")[0], triplets=truth.triplets)
    half = rec.score([truth], {truth.uid: boxed(truth, (0.0, 0.0, 20.0, 10.0))})
    assert half["miou"] == 0.5 and half["acc50"] == 0.0
    more = rec.score([truth], {truth.uid: boxed(truth, (0.0, 0.0, 20.5, 10.0))})
    assert more["acc50"] == 1.0


def test_boxes_are_clipped_to_the_picture_and_must_be_finite():
    truth = of("T17")[0]
    truth = replace(truth, triplets=boxed(truth, (40.0, 40.0, 64.0, 64.0)).triplets)
    outside = rec.score([truth], {truth.uid: boxed(truth, (40.0, 40.0, 900.0, 900.0))})
    assert outside["miou"] == 1.0
    broken = rec.score([truth], {truth.uid: boxed(truth, (0.0, 0.0, math.nan, 1.0))})
    assert broken["miou"] == 0.0 and broken["no_box_rate"] == 1.0


# One mask


def test_res_reference_values():
    overlaps = [(60, 100), (5, 50), (0, 0)]
    assert res.ciou_giou(overlaps, [True] * 3) == pytest.approx((65 / 150, 1.7 / 3), abs=1e-12)
    strict = res.ciou_giou([*overlaps, (0, 40)], [True] * 3 + [False])
    assert strict == pytest.approx((65 / 190, 1.7 / 4), abs=1e-12)


def test_res_on_records():
    truth = of("T18")[0]
    target = load_mask(truth.triplets[0].instances[0].rle, SIDE, SIDE)
    found = target.copy()
    found[:, : int(np.argwhere(target)[:, 1].mean())] = False
    span = dict(phrase="target", unit="mask", char_span=(0, 6))
    prediction = replace(
        perfect(truth),
        triplets=[Triplet(**span, instances=[masked(found), masked(target)])],
    )
    metrics = res.score([truth], {truth.uid: prediction})
    assert metrics["ciou"] == pytest.approx(found.sum() / target.sum(), abs=1e-12)
    assert metrics["giou"] == metrics["ciou"] and metrics["no_mask_rate"] == 0.0


def test_masks_of_another_size_are_resampled():
    small = np.zeros((32, 32), bool)
    small[4:20, 6:30] = True
    large = np.kron(small, np.ones((2, 2), bool))
    assert (load_mask(masked(small).rle, 64, 64) == large).all()
    assert iou_matrix([masked(small)], [masked(large)], "mask", 64, 64).tolist() == [[1.0]]
    assert iou_matrix([], [masked(large)], "mask", 64, 64).shape == (0, 1)
    empty = masked(np.zeros((4, 4), bool))
    assert iou_matrix([empty, Instance()], [empty], "mask", 4, 4).tolist() == [[0.0], [0.0]]
    assert iou_matrix([Instance()], [Instance(box=(0.0, 0.0, 1.0, 1.0))], "box", 4, 4) == 0.0


# Average precision

BOXES = {1: [(10, 10, 40, 40), (60, 60, 30, 30)], 2: [(20, 20, 50, 50)]}
FOUND = [
    (1, (12, 12, 40, 40), 0.9),
    (1, (70, 10, 20, 20), 0.3),
    (1, (60, 60, 30, 30), 0.8),
    (2, (0, 60, 30, 30), 0.2),
    (2, (22, 20, 50, 50), 0.7),
]
RANKED = dict(ap=0.8053, ap50=1.0, ap75=1.0, ap_small=1.0, ap_medium=0.7505)
RANKED |= dict(ar1=0.5333, ar10=0.8667, ar100=0.8667)
TIED = dict(ap=0.5938, ap50=0.7564, ap75=0.7564, ap_small=0.5, ap_medium=0.7505)
TIED |= dict(ar1=0.2333, ar10=0.8667, ar100=0.8667)


def ap_records(constant_score=False):
    def xyxy(box):
        x, y, w, h = map(float, box)
        return x, y, x + w, y + h

    base = of("T13")[0]
    truths, predictions = [], {}
    for image, boxes in BOXES.items():
        objects = [Instance(box=xyxy(box)) for box in boxes]
        found = [
            Instance(box=xyxy(box), score=1.0 if constant_score else score)
            for owner, box, score in FOUND
            if owner == image
        ]
        span = dict(phrase="thing", unit="box", char_span=(0, 5))
        fields = dict(uid=str(image), width=100, height=100)
        truths.append(replace(base, triplets=[Triplet(**span, instances=objects)], **fields))
        answer = replace(perfect(base), triplets=[Triplet(**span, instances=found)], **fields)
        predictions[str(image)] = answer
    return truths, predictions


@pytest.mark.parametrize("backend", ["fast", "reference"])
@pytest.mark.parametrize(("tied", "expected"), [(False, RANKED), (True, TIED)])
def test_ap_reference_values(tied, expected, backend, monkeypatch):
    if backend == "reference":
        monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    name = "faster_coco_eval" if backend == "fast" else "pycocotools"
    assert coco._backend()[1].__module__.startswith(name)
    metrics = detection.score(*ap_records(tied), "box")
    for key, value in expected.items():
        assert metrics[key] == pytest.approx(value, abs=5e-5), key
    assert "ap_large" not in metrics and metrics["n"] == 2


def test_phrases_are_categories():
    truths, predictions = ap_records()
    renamed = {
        uid: replace(p, triplets=[replace(t, phrase="The Thing.") for t in p.triplets])
        for uid, p in predictions.items()
    }
    assert detection.score(truths, renamed, "box")["ap50"] == 1.0
    other = {
        uid: replace(p, triplets=[replace(t, phrase="stuff") for t in p.triplets])
        for uid, p in predictions.items()
    }
    metrics = detection.score(truths, other, "box")
    assert metrics["ap50"] == 0.0 and metrics["unknown_phrase_rate"] == 1.0
    assert detection.score(truths, other, "box", by_phrase=False)["ap50"] == 1.0


def test_crowd_regions_absorb_detections():
    truths, predictions = ap_records()
    crowd = Instance(box=(0.0, 55.0, 40.0, 95.0))  # around the false positive of picture 2
    covered = [truths[0], replace(truths[1], ignore=[crowd])]
    tied = {
        uid: replace(
            p,
            triplets=[
                replace(t, instances=[replace(i, score=1.0) for i in t.instances])
                for t in p.triplets
            ],
        )
        for uid, p in predictions.items()
    }
    without, with_crowd = (detection.score(t, tied, "box") for t in (truths, covered))
    assert with_crowd["ap50"] > without["ap50"]
    assert with_crowd["ar100"] == without["ar100"]


def test_a_box_without_area_is_a_false_positive():
    truths, predictions = ap_records()
    first = predictions["1"]
    flat = Instance(box=(5.0, 5.0, 5.0, 5.0), score=1.0)
    more = [replace(t, instances=[flat, *t.instances]) for t in first.triplets]
    metrics = detection.score(truths, predictions | {"1": replace(first, triplets=more)}, "box")
    assert 0.0 < metrics["ap50"] < 1.0


# Grounded captions

IOU = np.array([[0.80, 0.10], [0.60, 0.55], [0.0, 0.52]])
SIMILARITY = np.array([[0.9, 0.2], [0.7, 0.4], [0.3, 0.9]])


def test_grounded_reference_values():
    assert grounded.greedy_miou(IOU) == pytest.approx(0.675, abs=1e-12)
    assert grounded.greedy_matches(IOU, SIMILARITY) == 1
    assert grounded.most_matches(IOU, SIMILARITY) == 2


def test_most_matches_moves_earlier_choices():
    allowed = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    assert grounded.most_matches(allowed, allowed) == 3
    assert grounded.most_matches(np.zeros((0, 2)), np.zeros((0, 2))) == 0


def test_wrong_phrase_loses_exact_recall():
    truth = of("T19")[0]
    wrong = [replace(t, phrase=f"pink {t.phrase.split()[1]}") for t in truth.triplets]
    metrics = grounded.score([truth], {truth.uid: replace(perfect(truth), triplets=wrong)}, "box")
    assert metrics["recall"] == 1.0 and metrics["recall_exact"] == 0.0 and metrics["ap50"] == 1.0


# Format


def test_format_counts_and_phrases():
    truth = of("T13")[0]
    raw = truth.raw.replace("[0]<REF>", "[0]<REF>[1]<REF>", 1)
    metrics = score([truth], {truth.uid: replace(perfect(truth), raw=raw, finish="length")})["all"]
    assert metrics["format_valid"] == 0.0 and metrics["self_consistent"] == 0.0
    assert metrics["parse_ok"] == 1.0 and metrics["truncated_rate"] == 1.0
    phrases = len(truth.triplets)
    assert metrics["count_exact"] == pytest.approx((phrases - 1) / phrases)
    assert metrics["count_mae"] == pytest.approx(1 / phrases)
    assert metrics["phrase_precision"] == metrics["phrase_recall"] == 1.0


# Intervals and baselines


def test_bootstrap_interval_of_a_proportion():
    values = [1.0] * 60 + [0.0] * 40
    images = [f"{k}.png" for k in range(100)]
    low, high = ratio_interval(values, [1.0] * 100, images, resamples=4000)
    spread = 1.96 * math.sqrt(0.6 * 0.4 / 100)
    assert (low, high) == pytest.approx((0.6 - spread, 0.6 + spread), abs=0.02)
    assert ratio_interval(values, [1.0] * 100, images, resamples=4000) == (low, high)


def test_bootstrap_draws_pictures_not_samples():
    values = [1.0] * 50 + [0.0] * 50
    one_picture = ratio_interval(values, [1.0] * 100, ["a"] * 100)
    assert one_picture == (0.5, 0.5)
    two = ratio_interval(values, [1.0] * 100, ["a"] * 50 + ["b"] * 50)
    assert two == (0.0, 1.0)
    assert ratio_interval([], [], []) == (0.0, 0.0)
    assert ratio_interval([0.0], [0.0], ["a"]) == (0.0, 0.0)


def test_trivial_baselines():
    found = trivial_baselines(TRUTHS, majority_answer="The answer is red.")
    assert set(found) == {"T03", "T17", "T18", "T21", "T22"}
    truths = of("T17")
    centred = (SIDE / 4, SIDE / 4, 3 * SIDE / 4, 3 * SIDE / 4)
    expected = rec.score(truths, by_uid(boxed(t, centred) for t in truths))
    assert found["T17"].metrics["miou"] == pytest.approx(expected["miou"])
    masks = [load_mask(t.triplets[0].instances[0].rle, SIDE, SIDE) for t in of("T18")]
    full = sum(m.sum() for m in masks) / (len(masks) * SIDE * SIDE)
    assert found["T18"].metrics["ciou"] >= full > 0.0
    assert found["T03"].what == "most frequent training answer"
    own = trivial_baselines(of("T03"))["T03"]
    assert own.metrics["accuracy"] >= 0.25
