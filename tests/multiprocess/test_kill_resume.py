"""A real training process, killed and restarted, against one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from refvlm_jax.train.metrics import read_metrics

pytestmark = pytest.mark.multiprocess
ROOT = Path(__file__).resolve().parents[2]
STEPS, PAUSE = 40, 0.02


def launch(workdir, pause=PAUSE):
    command = [sys.executable, "-m", "refvlm_jax.testing.toy", str(workdir), str(STEPS), str(pause)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=workdir, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def records(workdir):
    file = workdir / "metrics.jsonl"
    return read_metrics(file) if file.exists() else []


def losses(workdir):
    return [(r["step"], r["loss"].hex()) for r in records(workdir)]


def wait_for_step(process, workdir, step):
    """Until the process has recorded `step`; False if it ended before."""
    while process.poll() is None:
        if any(r["step"] >= step for r in records(workdir)):
            return True
        time.sleep(0.01)
    return False


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    process = launch(workdir, pause=0.0)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert [step for step, _ in losses(workdir)] == list(range(1, STEPS + 1))
    return losses(workdir)


@pytest.mark.slow
def test_five_kills_change_no_bit(tmp_path, undisturbed):
    for target in sorted(random.Random(3).sample(range(2, STEPS - 5), 5)):
        process = launch(tmp_path)
        try:
            assert wait_for_step(process, tmp_path, target)
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    process = launch(tmp_path, pause=0.0)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "resumed at step" in output
    assert losses(tmp_path) == undisturbed


def test_sigterm_saves_and_the_next_run_finishes(tmp_path, undisturbed):
    process = launch(tmp_path)
    assert wait_for_step(process, tmp_path, 7)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 3, output
    assert "stopped by SIGTERM" in output
    stopped = max(r["step"] for r in records(tmp_path))
    process = launch(tmp_path, pause=0.0)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert f"resumed at step {stopped}" in output
    assert losses(tmp_path) == undisturbed
