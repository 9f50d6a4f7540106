"""REF-VLM on built shards, killed at five random steps and restarted: not one bit changes."""

import random
from pathlib import Path

import pytest
from processes import ROOT, finish, kill, launch, losses, wait_for_step

from data_pipelines.build import build, shapes_world_recipe
from data_pipelines.shapes_world import generate

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow(3)]
STEPS = 14
SMALL = {
    "model.llama.layers": 1,
    "model.vision.layers": 1,
    "model.box.layers": 1,
    "model.mask": None,
    "data.batch_size": 4,
    "data.seq_len": 192,
    "data.merge": 1,
    "data.weights": {"T03": 1.0, "T17": 1.0},
    "data.opening_weights": {"T03": 1.0},
    "data.opening_steps": 7,
    "optim.warmup_steps": 5,
    "train.steps": STEPS,
    "train.log_every": 1,
    "train.tensorboard": False,
    "ckpt.every_steps": 2,
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    generate(root / "world", level=1, scenes={"train": 24}, progress=False)
    build(shapes_world_recipe(root / "world", "train"), root / "shards", progress=False)
    return root / "shards"


def train(workdir: Path, shards: Path):
    changes = [f"{name}={value}" for name, value in SMALL.items()]
    return launch(
        workdir,
        *("refvlm_jax.cli.main", "train", "--config", str(ROOT / "configs/shapes_tiny.py")),
        *("--workdir", str(workdir), f"data.path={shards}", *changes),
    )


def test_five_kills_change_no_bit_of_the_losses(tmp_path, shards):
    whole = tmp_path / "whole"
    killed = tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    finish(train(whole, shards))
    for target in sorted(random.Random(11).sample(range(2, STEPS - 2), 5)):
        process = train(killed, shards)
        try:
            assert wait_for_step(process, killed, target), process.communicate()[0]
        finally:
            kill(process)
    assert "resumed at step" in finish(train(killed, shards))
    assert [step for step, _ in losses(whole)] == list(range(1, STEPS + 1))
    assert losses(killed) == losses(whole)
