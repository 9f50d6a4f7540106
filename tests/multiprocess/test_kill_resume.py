"""A real training process, killed and restarted, against one that was left alone."""

import random
import signal
from pathlib import Path

import pytest
from processes import finish, kill, launch, losses, records, wait_for_step

pytestmark = pytest.mark.multiprocess
STEPS, PAUSE = 40, 0.02


def toy(workdir: Path, pause: float = PAUSE):
    return launch(workdir, "refvlm_jax.testing.toy", str(workdir), str(STEPS), str(pause))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> list:
    workdir = tmp_path_factory.mktemp("whole")
    finish(toy(workdir, pause=0.0))
    assert [step for step, _ in losses(workdir)] == list(range(1, STEPS + 1))
    return losses(workdir)


@pytest.mark.slow(1)
def test_five_kills_change_no_bit(tmp_path, undisturbed):
    for target in sorted(random.Random(3).sample(range(2, STEPS - 5), 5)):
        process = toy(tmp_path)
        try:
            assert wait_for_step(process, tmp_path, target)
        finally:
            kill(process)
    assert "resumed at step" in finish(toy(tmp_path, pause=0.0))
    assert losses(tmp_path) == undisturbed


def test_sigterm_saves_and_the_next_run_finishes(tmp_path, undisturbed):
    process = toy(tmp_path)
    assert wait_for_step(process, tmp_path, 7)
    process.send_signal(signal.SIGTERM)
    assert "stopped by SIGTERM" in finish(process, code=3)
    stopped = max(r["step"] for r in records(tmp_path))
    assert f"resumed at step {stopped}" in finish(toy(tmp_path, pause=0.0))
    assert losses(tmp_path) == undisturbed
