"""FLOPs of a run's own step over the peak of its devices."""

import jax
import numpy as np
import pytest

from refvlm_jax.mesh.build import batch_sharding, make_mesh, make_rules
from refvlm_jax.plan.pods import device_table, reported_device
from refvlm_jax.testing.toy import (
    FEATURES,
    HIDDEN,
    LAYERS,
    WIDTH,
    ToyModel,
    toy_batch,
    toy_batches,
    toy_config,
    toy_task,
)
from refvlm_jax.train.loop import fit, plan_state
from refvlm_jax.train.metrics import read_metrics
from refvlm_jax.train.model_def import define
from refvlm_jax.train.run import put_batch
from refvlm_jax.train.state import initialize
from refvlm_jax.train.step import make_train_step
from refvlm_jax.train.utilisation import Utilisation

ROWS = 16
FORWARD = 2 * ROWS * (FEATURES * WIDTH + LAYERS * 2 * WIDTH * HIDDEN + WIDTH)
# The first map's input is data: no gradient is asked of it.
STEP = 3 * FORWARD - 2 * ROWS * FEATURES * WIDTH


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("cpu", None),
    ],
)
def test_devices_by_the_names_that_jax_gives_them(name: str, kind: str | None) -> None:
    found = reported_device(name)
    assert (found.kind if found else None) == kind


def test_work_over_time_and_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(train={"accumulate": 1})
    mesh, rules = make_mesh(config.mesh), make_rules(config.mesh)
    plan = plan_state(config, define(ToyModel))
    step = make_train_step(plan, toy_task(), config, mesh, rules)
    state, frozen = initialize(plan, 0)
    batch = put_batch(toy_batch(0, ROWS), batch_sharding(mesh, rules), ROWS)
    monkeypatch.setattr(
        "refvlm_jax.train.utilisation.reported_device", lambda name: device_table()["v5e"]
    )
    found = Utilisation(jax.devices()[0], 4)
    said = found.add(step, state, frozen, batch)
    assert said is not None and "197 TFLOP/s" in said and "recomputation left out (MFU)" in said
    assert found.add(step, state, frozen, batch) is None
    values = found.record(steps_per_second=8.0)
    assert values["tflops_per_device"] == pytest.approx(STEP * 8.0 / 4 / 1e12)
    assert values["mfu"] == values["hfu"] == pytest.approx(STEP * 8.0 / 4 / 197e12)
    assert found.record(0.0) == {}


def test_a_run_records_its_work(tmp_path, capsys) -> None:
    config = toy_config(train={"steps": 6, "accumulate": 1})
    fit(config, toy_task(), ToyModel, lambda step: toy_batches(step, ROWS), tmp_path)
    record = [r for r in read_metrics(tmp_path / "metrics.jsonl") if "loss" in r][-1]
    rate = record["steps_per_second"]
    np.testing.assert_allclose(record["tflops_per_device"], STEP * rate / 1e12, rtol=1e-6)
    assert "mfu" not in record
    assert "no peak is known of cpu" in capsys.readouterr().out
