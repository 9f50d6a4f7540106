"""Keypoints and depth in evaluation: published numbers, the protocol's rules, records, drawings."""

import base64
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refvlm_jax.config.model import COCO_SIGMAS
from refvlm_jax.eval.baselines import mean_pose, trivial_baselines
from refvlm_jax.eval.depth_maps import beside, first_depth, load_depth, within
from refvlm_jax.eval.judge import judge
from refvlm_jax.eval.overlay import overlay_svg
from refvlm_jax.eval.overlay_units import SKELETON, depth_layer, depth_range
from refvlm_jax.eval.record_types import DepthMap, Instance, Prediction, Triplet, Truth
from refvlm_jax.eval.records import read_predictions, read_truths, write_records
from refvlm_jax.eval.score import score
from refvlm_jax.eval.scorers import depth, keypoints
from refvlm_jax.rle import encode

SIDE = 200


def figure(x: float = 0.0, y: float = 0.0, labelled=range(17), side: float = 100.0) -> Instance:
    """Seventeen joints on a diagonal of a square; the box is the square."""
    points = [
        [x + 2 + 5 * k, y + 3 + 5 * k, 2.0] if k in labelled else [0.0] * 3 for k in range(17)
    ]
    return Instance(box=(x, y, x + side, y + side), keypoints=points)


def moved(figure: Instance, by, score: float = 1.0) -> Instance:
    """The figure with joint k moved by `by(k)` pixels, as a prediction."""
    points = [[x + by(k), y, 0.9] for k, (x, y, _) in enumerate(figure.keypoints)]
    return Instance(keypoints=points, score=score)


def record(kind, task: str, found: list[Instance], uid: str = "u", **fields):
    unit = "depth" if task == "T25" else "keypoint"
    triplets = [Triplet(phrase="person", unit=unit, char_span=(0, 6), instances=found)]
    raw = f"<Phrase>person</Phrase>(<Unit>{unit}</Unit>[0]<REF>)."
    common = {
        "uid": uid, "task_id": task, "image": f"{uid}.png", "width": SIDE, "height": SIDE,
        "raw": raw, "triplets": triplets if found else [],
    }  # fmt: skip
    if kind is Truth:
        return Truth(**common, question="Who?", answer="person.", style="direct", **fields)
    return Prediction(**common, plain="person.", finish="eos", n_tokens=3)


def pose_scores(figures, found, **fields) -> dict[str, float]:
    truth = record(Truth, "T23", figures, **fields)
    return keypoints.score([truth], {"u": record(Prediction, "T23", found)})


def test_oks_of_the_worked_example() -> None:
    truth = figure(labelled=(0, 5, 11))
    away = {0: 5.0, 5: 20.0, 11: 0.0}
    found = moved(truth, lambda k: away.get(k, 500.0))
    assert keypoints.similarity(found, truth) == pytest.approx(0.6928860135, abs=1e-9)
    scores = pose_scores([truth], [found])
    # Four of the ten thresholds lie below it.
    assert scores["ap"] == pytest.approx(0.4) and scores["ap50"] == 1 and scores["ap75"] == 0
    assert scores["oks"] == pytest.approx(0.6928860135)
    assert scores["pck05"] == pytest.approx(2 / 3) and scores["pck20"] == 1


def test_the_area_is_that_of_the_mask() -> None:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:50, :50] = 1
    rle = {"size": [SIDE, SIDE], "counts": encode(mask).decode("ascii")}
    truth = replace(figure(), rle=rle)
    sigmas = 2 * np.array(COCO_SIGMAS)
    wanted = np.exp(-9.0 / (2 * 2500 * sigmas**2)).mean()
    assert keypoints.similarity(moved(truth, lambda k: 3.0), truth) == pytest.approx(wanted)


def test_crowds_and_unlabelled_people_cost_nothing() -> None:
    people = [figure(), figure(90.0, 90.0)]
    exact = [moved(p, lambda k: 0.0) for p in people]
    stray = Instance(keypoints=[[30.0, 150.0, 1.0]] * 17, score=1.0)
    assert pose_scores(people, exact)["ap"] == pytest.approx(1.0)
    assert pose_scores(people, [stray, *exact])["ap"] < 0.9
    hidden = Instance(box=(20.0, 140.0, 40.0, 160.0), keypoints=[])
    assert pose_scores(people, [stray, *exact], ignore=[hidden])["ap"] == pytest.approx(1.0)
    # An unlabelled person explains one detection, a crowd any number of them.
    twice = [stray, stray, *exact]
    assert pose_scores(people, twice, ignore=[hidden])["ap"] < 0.9
    crowd = replace(hidden, keypoints=None)
    assert pose_scores(people, twice, ignore=[crowd])["ap"] == pytest.approx(1.0)


def test_what_is_not_found_is_wrong() -> None:
    people = [figure(), figure(90.0, 90.0)]
    one = pose_scores(people, [moved(people[1], lambda k: 0.0)])
    assert one["pck05"] == one["oks"] == pytest.approx(0.5) and one["ar"] == pytest.approx(0.5)
    none = pose_scores(people, [])
    assert none["ap"] == none["oks"] == none["pck20"] == 0 and none["n"] == 1
    short = [Instance(keypoints=[[1.0, 1.0, 1.0]])]
    assert pose_scores(people, short)["oks"] == 0
    with pytest.raises(ValueError, match="a target without joints"):
        pose_scores([Instance(box=(0.0, 0.0, 9.0, 9.0))], [])
    with pytest.raises(ValueError, match="3 joints; the protocol is defined for COCO's 17"):
        pose_scores([replace(figure(), keypoints=[[1.0, 1.0, 2.0]] * 3)], [])


def test_figures_are_paired_by_similarity() -> None:
    people = [figure(), figure(60.0, 0.0)]
    found = [moved(people[1], lambda k: 1.0), moved(people[0], lambda k: 1.0)]
    pairs = keypoints.matches(
        record(Truth, "T23", people), record(Prediction, "T23", found)
    )  # fmt: skip
    assert [pair[1] for pair in pairs] == [found[1], found[0]]


def test_the_mean_pose_is_told_where_everyone_is() -> None:
    truths = [record(Truth, "T24", [figure(10.0 * k, 5.0, side=100.0)], f"u{k}") for k in range(4)]
    pose = mean_pose(truths)
    np.testing.assert_allclose(pose[3], [0.17, 0.18], atol=1e-9)
    found = trivial_baselines(truths)["T24"]
    assert found.what == "mean pose in the true box" and found.metrics["ap"] == pytest.approx(1.0)


def test_depth_errors_of_the_worked_example() -> None:
    found = depth.errors(np.array([1.0, 2.0, 4.0]), np.array([1.1, 1.8, 5.0]))
    wanted = {
        "abs_rel": 0.1340067, "sq_rel": 0.0771044, "rmse": 0.5916080, "rmse_log": 0.1527284,
        "log10": 0.0613534, "delta1": 2 / 3, "delta2": 1.0, "delta3": 1.0, "silog": 13.520561,
    }  # fmt: skip
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


def scene() -> np.ndarray:
    values = np.repeat(np.linspace(2.0, 12.0, SIDE)[:, None], SIDE, axis=1)
    values[:40] = np.nan  # the sky
    return values


def depth_scores(found: np.ndarray | None, kind: str = "metric") -> dict[str, float]:
    truth = record(Truth, "T25", [Instance(depth=within(scene()))])
    instances = [] if found is None else [Instance(depth=within(found, kind))]
    return depth.score([truth], {"u": record(Prediction, "T25", instances)})


def test_alignment_forgives_what_it_should() -> None:
    exact = depth_scores(np.nan_to_num(scene(), nan=99.0))
    assert exact["abs_rel"] < 1e-3 and exact["delta1"] == 1
    far = depth_scores(np.nan_to_num(3.0 * scene(), nan=99.0))
    assert far["abs_rel"] == pytest.approx(2.0, rel=1e-3) and far["delta1"] == 0
    assert far["median_abs_rel"] < 1e-3 and far["affine_delta1"] == 1
    inverse = 0.3 / np.nan_to_num(scene(), nan=99.0) + 0.05
    relative = depth_scores(inverse, "relative")
    assert relative["affine_abs_rel"] < 1e-2 and relative["median_delta1"] == 0


def test_a_missing_map_is_wrong_by_a_factor_of_ten() -> None:
    none = depth_scores(None)
    assert none["abs_rel"] == none["affine_abs_rel"] == pytest.approx(0.9)
    assert none["log10"] == pytest.approx(1.0) and none["delta3"] == 0
    assert none["no_depth_rate"] == 1 and depth_scores(scene())["no_depth_rate"] == 0
    holes = np.where(np.arange(SIDE) < SIDE // 2, scene(), np.nan)
    assert depth_scores(holes)["delta1"] == pytest.approx(0.5)


def test_depth_baselines_name_the_better_mean() -> None:
    truths = [
        record(Truth, "T25", [Instance(depth=within(share * scene()))], f"u{share}")
        for share in (1.0, 1.1)
    ]
    found = trivial_baselines(truths)["T25"]
    assert found.what == "mean depth of each place" and found.metrics["delta1"] > 0.9


def test_records_with_depth_files_can_move(tmp_path: Path) -> None:
    folder = tmp_path / "eval"
    (folder / "val.depth").mkdir(parents=True)
    stored = beside(folder / "val.depth" / "a.png", scene())
    shown = record(Prediction, "T25", [Instance(depth=stored)])
    write_records(folder / "p.jsonl", [shown])
    line = json.loads((folder / "p.jsonl").read_text())
    assert line["triplets"][0]["instances"][0]["depth"]["path"] == "val.depth/a.png"
    assert read_predictions(folder / "p.jsonl")["u"] == shown
    folder.rename(tmp_path / "moved")
    back = read_predictions(tmp_path / "moved" / "p.jsonl")["u"]
    np.testing.assert_allclose(load_depth(first_depth(back), SIDE, SIDE), scene(), atol=1e-3)
    with pytest.raises(ValueError, match=r"a\.png: depth map cannot be read"):
        load_depth(stored, SIDE, SIDE)


def test_records_keep_keypoints_and_embedded_maps(tmp_path: Path) -> None:
    truths = [
        record(Truth, "T23", [figure()], "a", ignore=[Instance(box=(0, 0, 9, 9), keypoints=[])]),
        record(Truth, "T25", [Instance(depth=within(scene()))], "b"),
    ]
    write_records(tmp_path / "t.jsonl", truths)
    assert read_truths(tmp_path / "t.jsonl") == truths
    old = json.loads((tmp_path / "t.jsonl").read_text().splitlines()[0])
    for instance in old["triplets"][0]["instances"]:
        del instance["keypoints"], instance["depth"]  # as written before there were any
    (tmp_path / "old.jsonl").write_text(json.dumps(old))
    assert read_truths(tmp_path / "old.jsonl")[0].triplets[0].instances[0].keypoints is None


@pytest.mark.parametrize(
    ("depth_map", "message"),
    [
        (DepthMap(scale=1.0), "needs either a path or a png"),
        (DepthMap(scale=0.0, png="AA"), r"depth\.scale is 0\.0"),
        (DepthMap(scale=1.0, png="AA", kind="feet"), "expected one of metric, relative"),
    ],
)
def test_a_bad_depth_record_is_refused(tmp_path: Path, depth_map: DepthMap, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_records(tmp_path / "t.jsonl", [record(Truth, "T25", [Instance(depth=depth_map)])])


def test_scores_have_intervals_for_joints_and_depth() -> None:
    poses = [record(Truth, "T23", [figure()], f"p{k}") for k in range(3)]
    maps = [record(Truth, "T25", [Instance(depth=within(scene()))], f"d{k}") for k in range(3)]
    found = {
        t.uid: record(Prediction, t.task_id, [moved(figure(), lambda k: 2.0)], t.uid) for t in poses
    }
    found |= {
        t.uid: record(Prediction, "T25", [Instance(depth=within(scene()))], t.uid) for t in maps
    }
    table = score([*poses, *maps], found, resamples=20)
    assert table["T23"]["pck05"] == 1 and table.intervals["T23"]["pck05"] == (1.0, 1.0)
    assert table.intervals["T25"]["delta1"] == (1.0, 1.0) and "ap" in table["T23"]


def test_verdicts_of_figures_and_depth() -> None:
    truth = record(Truth, "T23", [figure()])
    right = record(Prediction, "T23", [moved(figure(), lambda k: 1.0)])
    assert judge(truth, right).correct and "1 of 1 found" in judge(truth, right).badge
    twice = record(Prediction, "T23", [moved(figure(), lambda k: 1.0)] * 2)
    assert not judge(truth, twice).correct and not judge(truth, None).correct
    ground = record(Truth, "T25", [Instance(depth=within(scene()))])
    off = record(Prediction, "T25", [Instance(depth=within(1.3 * scene()))])
    assert judge(ground, off).badge == "AbsRel 0.30" and not judge(ground, off).correct


def test_skeletons_are_drawn_between_visible_joints() -> None:
    def drawing(found: Instance) -> str:
        return overlay_svg(record(Prediction, "T23", [found]), "", SIDE, SIDE, label="l")

    whole = drawing(moved(figure(), lambda k: 0.0))
    assert whole.count("<circle") == 17 + 1 and whole.count("M") == 2 * len(SKELETON)
    nose_hidden = figure()
    nose_hidden.keypoints[0][2] = 0.0
    assert drawing(nose_hidden).count("M") == 2 * (len(SKELETON) - 2)
    assert "<path" not in drawing(Instance(keypoints=[[1.0, 1.0, 1.0]] * 3))
    assert "<circle" not in drawing(Instance(keypoints=[[1.0, 1.0, 0.0]] * 17))


def test_near_is_red_far_is_blue_and_unknown_is_clear() -> None:
    import io

    from PIL import Image

    truth = record(Truth, "T25", [Instance(depth=within(scene()))])
    layer = depth_layer(first_depth(truth), SIDE, SIDE, depth_range(truth))
    data = layer.partition("base64,")[2].partition('"')[0]
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(data))))
    assert pixels[0, 0, 3] == 0
    near, far = pixels[45, 9].astype(int), pixels[-1, 9].astype(int)
    assert near[0] > near[2] and far[2] > far[0]
    # Both pictures of a card share the truth's scale: a map twice as far is bluer everywhere.
    far_layer = depth_layer(within(2 * scene()), SIDE, SIDE, depth_range(truth))
    assert far_layer != depth_layer(within(2 * scene()), SIDE, SIDE, None)
