"""A whole small training job on the devices of this machine."""

import tempfile
from pathlib import Path

import jax

from refvlm_jax.testing.toy import ToyModel, toy_batches, toy_config, toy_task
from refvlm_jax.train.loop import fit
from refvlm_jax.train.metrics import read_metrics

STEPS = 20


def self_test() -> list[float]:
    """Trains the toy on all devices, with a stop and a resume in between; the losses by step.

    Raises:
      RuntimeError: the resumed run did not go on where the first one stopped.
    """
    devices = jax.device_count()
    mesh = {"preset": "fsdp", "shape": (1, -1, 1, 1)} if devices > 1 else {}
    rows = 2 * 8 * devices
    with tempfile.TemporaryDirectory(prefix="refvlm_doctor_") as folder:
        for steps in (STEPS // 2, STEPS):
            config = toy_config(
                name="self-test",
                data={"batch_size": rows},
                mesh=mesh,
                optim={"lr": 0.03, "schedule": "constant"},
                train={"steps": steps, "log_every": 1},
            )
            fit(
                config, toy_task(), ToyModel, lambda start: toy_batches(start, rows), folder,
                quiet=True,
            )  # fmt: skip
        records = read_metrics(Path(folder) / "metrics.jsonl")
    losses = {int(record["step"]): record["loss"] for record in records if "loss" in record}
    if sorted(losses) != list(range(1, STEPS + 1)):
        raise RuntimeError(f"resumed run recorded steps {sorted(losses)}, expected 1 to {STEPS}")
    return [losses[step] for step in sorted(losses)]
