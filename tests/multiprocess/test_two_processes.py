"""A run sharded over two processes: preemption of one, resume, and a move to one process."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from refvlm_jax.train.metrics import read_metrics

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("one_of_several.py")
NEVER = -1


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(workdir, count, steps, signal_step=NEVER):
    """Exit codes of all processes."""
    port, environment = free_port(), {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, PROGRAM, *map(str, (i, count, port, workdir, steps, signal_step))],
            env=environment,
            stdout=(workdir / f"log{i}").open("w"),
            stderr=subprocess.STDOUT,
        )
        for i in range(count)
    ]
    try:
        return [process.wait(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()


def losses(workdir):
    return {r["step"]: r["loss"] for r in read_metrics(workdir / "metrics.jsonl")}


def test_preemption_resume_and_another_process_count(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    assert launch(whole, 2, steps=30) == [0, 0]
    # The signal reaches one process; both must agree on the step to save.
    assert launch(stopped, 2, steps=30, signal_step=5) == [3, 3]
    assert 5 <= max(losses(stopped)) < 30
    assert launch(stopped, 2, steps=30) == [0, 0]
    assert losses(stopped) == losses(whole)
    assert launch(stopped, 1, steps=32) == [0]
    assert list(losses(stopped)) == list(range(1, 33))
