"""Keypoints and depth from rendered world to report, shrunk: losses fall, every file is right."""

import json
from pathlib import Path

import numpy as np
import pytest

from refvlm_jax.cli.quickstart import quickstart
from refvlm_jax.config.resolve import load_config
from refvlm_jax.eval.depth_maps import first_depth, load_depth
from refvlm_jax.eval.records import read_predictions, read_truths
from refvlm_jax.train.metrics import read_metrics

pytestmark = pytest.mark.slow(2)
ROOT = Path(__file__).resolve().parents[2]
STEPS = 36
SMALL = (
    "world.level=2",  # every third scene has a person
    "world.train=24",
    "world.val=8",
    "world.val_combos=4",
    "ckpt.start_from=()",
    "model.vision.layers=1",
    "model.llama.layers=1",
    "model.box.layers=1",
    "model.mask.layers=1",
    "model.keypoint.layers=1",
    "data.batch_size=4",
    "data.merge=3",
    "data.opening_steps=0",
    "data.opening_weights={}",
    "data.weights={'T23': 1.0, 'T24': 1.0, 'T25': 1.0, 'T17': 0.5}",
    "optim.name=adamw",
    "optim.lr=2e-3",
    "optim.warmup_steps=2",
    f"train.steps={STEPS}",
    "train.log_every=1",
    "eval.batch_size=8",
    "eval.max_new_tokens=64",
    "eval.limit=3",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("pose")
    assert quickstart(load_config(ROOT / "configs" / "shapes_pose.py", SMALL), workdir) == 0
    return workdir


def test_the_losses_of_both_units_fall(finished: Path) -> None:
    history = read_metrics(finished / "metrics.jsonl")
    for name in ("keypoint_box_l1", "keypoint_visibility", "depth_silog"):
        # A step without such a reference records zero.
        values = [row[f"loss/{name}"] for row in history if row.get(f"loss/{name}", 0) > 0]
        assert len(values) > STEPS // 4, name
        third = len(values) // 3
        assert np.mean(values[-third:]) < 0.8 * np.mean(values[:third]), name


def test_metrics_name_joints_and_depth_with_their_baselines(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    for key in ("keypoint_ap", "keypoint_pck", "depth_abs_rel", "depth_delta1"):
        assert np.isfinite(metrics[key]), key
        assert {"trivial", "what", "untrained"} <= metrics["baselines"][key].keys()
    assert {"T23", "T24", "T25"} <= metrics["splits"]["val"].keys()


def test_truths_and_predictions_read_back_with_their_depth(finished: Path) -> None:
    truths = read_truths(finished / "eval" / "val.truths.jsonl")
    predictions = read_predictions(finished / "eval" / "val.predictions.jsonl")
    assert {t.task_id for t in truths} >= {"T17", "T23", "T24", "T25"}
    for truth in (t for t in truths if t.task_id == "T25"):
        values = load_depth(first_depth(truth), truth.width, truth.height)
        assert 1.0 < np.nanmin(values) < np.nanmax(values) < 25.0
        given = first_depth(predictions[truth.uid])
        assert given is None or np.isfinite(load_depth(given, truth.width, truth.height)).all()


def test_the_report_shows_skeletons_and_depth_and_needs_nothing_else(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert 'class="pose"' in page and 'class="depth"' in page
    assert str(finished) not in page
