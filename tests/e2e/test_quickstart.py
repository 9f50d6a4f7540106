"""The quickstart's whole path, shrunk to seconds: its numbers mean nothing, its files must be right."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from refvlm_jax.ckpt.manager import load_params
from refvlm_jax.cli.main import main
from refvlm_jax.cli.quickstart import asked, questions, quickstart
from refvlm_jax.config.resolve import load_config
from refvlm_jax.eval.records import read_predictions, read_truths

pytestmark = pytest.mark.slow(2)
ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "world.train=24",
    "world.val=6",
    "world.val_combos=4",
    "model.vision.layers=1",
    "model.llama.layers=1",
    "model.box.layers=1",
    "model.mask.layers=1",
    "data.batch_size=4",
    "data.merge=2",
    "data.opening_steps=2",
    "optim.warmup_steps=1",
    "train.steps=4",
    "train.log_every=1",
    "eval.batch_size=8",
    "eval.max_new_tokens=8",
    "eval.limit=2",
)
HEADLINE = {
    "rec_acc50", "res_ciou", "det_ap50", "vqa_acc", "format_valid", "rec_acc50_heldout_combos",
    "train_seconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("quickstart")
    config = load_config(ROOT / "configs" / "shapes_tiny.py", SMALL)
    assert quickstart(config, workdir) == 0
    return workdir


def test_unseen_pairs_are_asked_what_has_a_headline_number() -> None:
    plain = load_config(ROOT / "configs" / "shapes_tiny.py")
    assert {"T01", "T17"} < set(asked(plain, "val"))
    assert asked(plain, "val_combos") == ["T03", "T13", "T17", "T18"]
    chosen = load_config(ROOT / "configs" / "shapes_tiny.py", ("eval.tasks=('T01', 'T17')",))
    assert asked(chosen, "val_combos") == ["T17"]


def test_tasks_without_a_headline_number_are_asked_fewer_questions() -> None:
    config = load_config(ROOT / "configs" / "shapes_tiny.py", ("eval.limit=10",))
    found = questions(config, "val")
    assert set(found) == set(asked(config, "val"))
    assert {task for task, number in found.items() if number == 10} == {"T03", "T13", "T17", "T18"}
    assert found["T01"] == 4
    every = load_config(ROOT / "configs" / "shapes_tiny.py", ("eval.limit=0",))
    assert set(questions(every, "val").values()) == {0}


def test_metrics_have_every_headline_number_and_its_baselines(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics.keys() >= HEADLINE
    assert all(0.0 <= metrics[key] <= 1.0 for key in HEADLINE - {"train_seconds"})
    for key in HEADLINE - {"train_seconds"}:
        assert metrics["baselines"][key]["value"] == metrics[key]
    for key in ("rec_acc50", "res_ciou", "vqa_acc", "rec_acc50_heldout_combos"):
        assert {"trivial", "what"} <= metrics["baselines"][key].keys()


def test_every_question_has_one_prediction(finished: Path) -> None:
    truths = read_truths(finished / "eval" / "val.truths.jsonl")
    predictions = read_predictions(finished / "eval" / "val.predictions.jsonl")
    assert truths and predictions.keys() == {truth.uid for truth in truths}
    assert {t.task_id for t in truths} >= {"T01", "T03", "T06", "T13", "T14", "T17", "T18", "T19"}


def test_the_report_needs_nothing_but_itself(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page or "data:image" in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)


def test_a_second_call_says_that_it_is_done(finished: Path, capsys) -> None:
    before = (finished / "metrics.json").stat().st_mtime_ns
    assert quickstart(load_config(ROOT / "configs" / "shapes_tiny.py", SMALL), finished) == 0
    assert "already done" in capsys.readouterr().out
    assert (finished / "metrics.json").stat().st_mtime_ns == before


def test_a_lost_report_is_made_again_without_training(finished: Path, capsys) -> None:
    (finished / "report.html").unlink()
    assert quickstart(load_config(ROOT / "configs" / "shapes_tiny.py", SMALL), finished) == 0
    assert "nothing to train" in capsys.readouterr().out
    assert (finished / "report.html").is_file()


def test_a_finished_run_answers_a_question(finished: Path, tmp_path: Path, capsys) -> None:
    """With the checkpoint's own configuration; a model of four steps writes whatever it likes."""
    picture = next((finished / "world" / "images" / "val").iterdir())
    ask = ["ask", "--workdir", str(finished), "--image", str(picture), "--task", "T17"]
    drawing = tmp_path / "answer.svg"
    assert main([*ask, "--words", "the circle", "--draw", str(drawing), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["task_id"] == "T17" and answer["image"] == picture.name and answer["n_tokens"] > 0
    assert drawing.read_text(encoding="utf-8").startswith("<svg")
    assert main(ask) == 2
    assert "T17 (referring comprehension) needs --words" in capsys.readouterr().err


def test_a_finished_run_is_the_start_of_another(finished: Path, tmp_path: Path, capsys) -> None:
    """A decoder is added, the tower is frozen, and a first step is taken."""
    recipe = str(ROOT / "configs" / "shapes_pose.py")
    more = [
        *(field for field in SMALL if not field.startswith(("data.opening", "world."))),
        f"ckpt.start_from=('{finished}',)",
        "model.keypoint=None",
        "data.kpt_refs=0",
        "data.weights={}",
        "optim.groups=[{'pattern': '^vision[.]', 'frozen': True}]",
        "train.steps=1",
        f"data.path={finished / 'vt_instruct' / 'train'}",
    ]
    assert main(["train", "--config", recipe, "--workdir", str(tmp_path), *more]) == 0
    assert "from scratch: depth (" in capsys.readouterr().out
    before, after = load_params(finished / "checkpoints"), load_params(tmp_path / "checkpoints")
    assert after.keys() > before.keys()
    for name, value in before.items():
        moved = np.abs(after[name] - value).max()
        assert moved == 0 if name.startswith("vision.") else moved < 0.1, name
