"""Runs over several processes, hurt as clusters hurt them: no sample lost, no loss changed."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from sharded_job import ROWS, fingerprint

from refvlm_jax.testing.cluster import Processes, tail, truncate_item
from refvlm_jax.train.loop import CHECKPOINTS
from refvlm_jax.train.metrics import read_metrics

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow(2)]
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = str(Path(__file__).with_name("sharded_job.py"))
STEPS, NEVER = 12, -1


def job(workdir, count, devices, steps=STEPS, signal_step=NEVER, pause=0.0):
    program = [PROGRAM, *map(str, (workdir, steps, signal_step, pause))]
    return Processes(program, count, devices, workdir, path=ROOT)


def run(workdir, count, devices, status=0, **options):
    """Runs to the end; returns the log of process 0."""
    with job(workdir, count, devices, **options) as processes:
        assert processes.wait() == [status] * count, "\n".join(map(tail, processes.logs))
        return processes.logs[0].read_text()


def history(workdir):
    """Step -> (loss, fingerprint of its rows), asserting that no step was recorded twice."""
    records = [r for r in read_metrics(workdir / "metrics.jsonl") if "loss" in r]
    found = {r["step"]: (r["loss"], r["count/rows"]) for r in records}
    assert len(found) == len(records)
    return found


def assert_every_sample_once(workdir, steps=STEPS):
    rows = {step: fingerprint(np.arange((step - 1) * ROWS, step * ROWS)) for step in
            range(1, steps + 1)}  # fmt: skip
    assert {step: seen for step, (_, seen) in history(workdir).items()} == rows


def assert_equal_losses(workdir, whole, exactly=False):
    ours, theirs = history(workdir), history(whole)
    assert ours.keys() == theirs.keys()
    tolerance = 0.0 if exactly else 2e-5
    for step in theirs:
        assert ours[step][0] == pytest.approx(theirs[step][0], rel=tolerance, abs=0), step


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run of two processes with four devices each."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder, 2, 4)
    assert_every_sample_once(folder)
    return folder


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """The same run preempted: both processes stop and save after the step they agree on."""
    folder = tmp_path_factory.mktemp("half")
    log = run(folder, 2, 4, status=3, signal_step=5)
    assert "stopped by SIGTERM" in log
    stopped = max(history(folder))
    assert 5 <= stopped < STEPS and (folder / CHECKPOINTS / str(stopped)).is_dir()
    return folder


def test_the_same_topology_resumes_bit_for_bit(half, whole, tmp_path):
    shutil.copytree(half, tmp_path, dirs_exist_ok=True)
    assert "resumed at step" in run(tmp_path, 2, 4)
    assert_every_sample_once(tmp_path)
    assert_equal_losses(tmp_path, whole, exactly=True)


@pytest.mark.parametrize(("count", "devices"), [(4, 1), (1, 8)])
def test_another_topology_sees_the_same_samples(half, whole, tmp_path, count, devices):
    shutil.copytree(half, tmp_path, dirs_exist_ok=True)
    assert "resumed at step" in run(tmp_path, count, devices)
    assert_every_sample_once(tmp_path)
    assert_equal_losses(tmp_path, whole)


def test_a_signal_to_one_of_three_stops_all_after_the_same_step(tmp_path):
    run(tmp_path, 3, 2, status=3, signal_step=4)
    stopped = max(history(tmp_path))
    assert 4 <= stopped < STEPS and committed(tmp_path)[-1] == stopped
    assert_every_sample_once(tmp_path, stopped)


def committed(workdir):
    folder = workdir / CHECKPOINTS
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def unfinished(workdir):
    """Folders of checkpoints being written."""
    return list((workdir / CHECKPOINTS).glob("*tmp*"))


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(whole, tmp_path):
    with job(tmp_path, 2, 4, pause=0.05) as processes:
        # The second save is under way: its folder still carries a temporary name.
        assert processes.until(lambda: committed(tmp_path) and unfinished(tmp_path))
        processes.kill(signal.SIGKILL)
    before = committed(tmp_path)
    assert f"resumed at step {before[-1]}" in run(tmp_path, 2, 4)
    assert not unfinished(tmp_path)
    assert_every_sample_once(tmp_path)
    assert_equal_losses(tmp_path, whole, exactly=True)


def test_a_truncated_checkpoint_is_set_aside_by_all(half, whole, tmp_path):
    shutil.copytree(half, tmp_path, dirs_exist_ok=True)
    *_, good, newest = committed(tmp_path)
    # The files that processes wrote are copied into common ones, so that those must be cut as well.
    cut = truncate_item(tmp_path / CHECKPOINTS / str(newest), "optimizer")
    log = run(tmp_path, 2, 4)
    assert f"checkpoint {tmp_path / CHECKPOINTS / str(newest)} is damaged" in log
    assert f"the run goes on from step {good}" in log and f"resumed at step {good}" in log
    (aside,) = (tmp_path / CHECKPOINTS).glob(f"damaged_{newest}_*")
    kept = (aside / file.relative_to(tmp_path / CHECKPOINTS / str(newest)) for file in cut)
    assert all(file.is_file() for file in kept)
    assert_every_sample_once(tmp_path)
    assert_equal_losses(tmp_path, whole, exactly=True)
