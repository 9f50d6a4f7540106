"""A whole small training job on the devices of this machine."""

import math
import shutil
import tempfile
from pathlib import Path

import jax

from refvlm_jax.testing.toy import ToyModel, toy_batches, toy_config, toy_task
from refvlm_jax.train.loop import CHECKPOINTS, fit
from refvlm_jax.train.metrics import read_metrics

STEPS = 20


def self_test() -> list[float]:
    """Trains the toy on all devices, goes back to an earlier checkpoint and repeats the last steps.

    Returns:
      the losses by step.

    Raises:
      RuntimeError: the repeated steps had other losses than the first time.
    """
    devices = jax.device_count()
    rows = 2 * 8 * devices
    config = toy_config(
        name="self-test",
        data={"batch_size": rows},
        mesh={"preset": "fsdp", "shape": (1, -1, 1, 1)} if devices > 1 else {},
        optim={"lr": 0.03},
        train={"steps": STEPS, "log_every": 1},
        ckpt={"every_steps": STEPS // 2},
    )
    with tempfile.TemporaryDirectory(prefix="refvlm_doctor_") as folder:
        seen = []
        for _ in range(2):
            fit(
                config,
                toy_task(),
                ToyModel,
                lambda start: toy_batches(start, rows),
                folder,
                quiet=True,
            )
            seen.append(_losses(Path(folder)))
            shutil.rmtree(Path(folder) / CHECKPOINTS / str(STEPS))
    first, again = seen
    if len(again) != STEPS or not all(
        math.isclose(a, b, rel_tol=1e-6) for a, b in zip(first, again, strict=True)
    ):
        raise RuntimeError(f"losses of a resumed run differ: {again[-1]} instead of {first[-1]}")
    return first


def _losses(folder: Path) -> list[float]:
    records = read_metrics(folder / "metrics.jsonl")
    return [record["loss"] for record in records if "loss" in record]
