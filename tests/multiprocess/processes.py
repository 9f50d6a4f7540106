"""Starting, watching and killing real training processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from refvlm_jax.train.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]


def launch(workdir: Path, *arguments: str) -> subprocess.Popen[str]:
    """`python -m ARGUMENTS` in `workdir`, on one CPU device."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=workdir,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Waits for the end and returns the output; the exit status must be `code`."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL: no handler runs, nothing is flushed."""
    process.send_signal(signal.SIGKILL)
    process.communicate()


def records(workdir: Path) -> list[dict]:
    """Metric records written so far."""
    file = workdir / "metrics.jsonl"
    return read_metrics(file) if file.exists() else []


def losses(workdir: Path) -> list[tuple[int, str]]:
    """(step, exact loss) of every record that has one."""
    return [(r["step"], r["loss"].hex()) for r in records(workdir) if "loss" in r]


def wait_for_step(process: subprocess.Popen[str], workdir: Path, step: int) -> bool:
    """Until the process has recorded `step`; False if it ended before."""
    while process.poll() is None:
        if any(r["step"] >= step for r in records(workdir)):
            return True
        time.sleep(0.01)
    return False
