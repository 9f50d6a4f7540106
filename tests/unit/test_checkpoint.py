"""Saving, restoring, refusing and falling back; resuming a run bit for bit."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from refvlm_jax.ckpt.checksum import device_checksums, host_checksum
from refvlm_jax.ckpt.items import CheckpointError
from refvlm_jax.ckpt.manager import CheckpointManager, inspect, load_params, read_meta, step_folder
from refvlm_jax.config.schema import CkptConfig, MeshConfig
from refvlm_jax.mesh.build import make_mesh
from refvlm_jax.testing.toy import ToyModel, toy_batches, toy_config, toy_task
from refvlm_jax.train.loop import CHECKPOINTS, Hook, Status, TrainingError, fit, plan_state
from refvlm_jax.train.metrics import MetricWriter, read_metrics
from refvlm_jax.train.model_def import define
from refvlm_jax.train.state import initialize

FREEZE = {"groups": [{"pattern": "^blocks", "frozen": True}]}


def train(folder, *, stop_at=None, loader=toy_batches, hooks=(), **sections):
    """Runs the toy with dropout; `stop_at` ends the data early."""
    config = toy_config(**sections)

    def open_loader(start):
        for step, batch in enumerate(loader(start, 16), start):
            if step == stop_at:
                return
            yield batch

    return fit(config, toy_task(dropout=True), ToyModel, open_loader, folder, hooks=hooks)


def losses(folder):
    return {r["step"]: r["loss"] for r in read_metrics(folder / "metrics.jsonl") if "loss" in r}


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def test_resume_is_bit_exact(tmp_path):
    whole = train(tmp_path / "a", optim=FREEZE)
    with pytest.raises(TrainingError, match="data ended after step 13 of 20"):
        train(tmp_path / "b", stop_at=13, optim=FREEZE)
    again = train(tmp_path / "b", optim=FREEZE)
    assert whole.status is again.status is Status.FINISHED
    assert_same((whole.state, whole.frozen), (again.state, again.frozen))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert list(losses(tmp_path / "b")) == list(range(1, 21))


def test_a_finished_run_says_so_and_keeps_its_training_time(tmp_path):
    first = train(tmp_path)
    second = train(tmp_path)
    assert second.status is Status.ALREADY_DONE
    assert (second.step, second.exit_code) == (20, 0)
    assert 0 < second.train_seconds <= first.train_seconds
    longer = train(tmp_path, train={"steps": 25})
    assert longer.step == 25 and longer.train_seconds > second.train_seconds


def noise(tree):
    """Random numbers of the same layout: fresh moments are zero and would hide damage."""

    def draw(leaf):
        values = np.random.default_rng(leaf.size).normal(size=leaf.shape)
        return jax.device_put(values.astype(leaf.dtype), leaf.sharding)

    return jax.tree.map(draw, tree)


def saved(tmp_path, keep=2, **sections):
    """A plan, its state and a manager that holds steps 1 and 2."""
    plan = plan_state(toy_config(**sections), define(ToyModel))
    state, frozen = initialize(plan, 0)
    state = dataclasses.replace(state, opt_state=noise(state.opt_state))
    manager = CheckpointManager(tmp_path, CkptConfig(keep=keep))
    for step in (1, 2):
        manager.save(step, state, frozen, {"config": {}, "train_seconds": 1.5 * step})
    manager.wait()
    return plan, state, frozen, manager


def test_round_trip_lays_every_leaf_out(tmp_path):
    mesh = {"preset": "fsdp", "shape": (1, -1, 1, 1)}
    plan, state, frozen, manager = saved(tmp_path, mesh=mesh, optim=FREEZE)
    restored = manager.restore(plan.state, plan.frozen)
    assert restored.step == 2 and restored.meta["train_seconds"] == 3.0
    assert_same((state, frozen), (restored.state, restored.frozen))
    for leaf, wanted in zip(
        jax.tree.leaves(restored.state), jax.tree.leaves(plan.state), strict=True
    ):
        assert isinstance(leaf.sharding, NamedSharding) and leaf.sharding == wanted.sharding
    manager.close()


def truncate(path):
    """Cuts every data file of an item to a third."""
    files = [f for f in path.rglob("*") if f.is_file() and "d" in f.parts]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])


def flip(path):
    """Flips one bit amid the array data; storage itself may not notice."""
    files = [f for f in path.rglob("*") if f.is_file() and f.parent.name == "d"]
    largest = max(f.stat().st_size for f in files)
    for file in (f for f in files if f.stat().st_size > largest // 2):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 0x10
        file.write_bytes(bytes(data))


def remove_manifest(path):
    for file in path.rglob("manifest.ocdbt"):
        file.unlink()


# Orbax leaves its event loop closed behind a failed read and says so when it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("item", ["params", "optimizer"])
@pytest.mark.parametrize("damage", [truncate, remove_manifest, flip])
def test_damage_falls_back_and_sets_the_folder_aside(tmp_path, caplog, item, damage):
    plan, state, frozen, manager = saved(tmp_path)
    damage(tmp_path / "2" / item)
    with caplog.at_level(logging.WARNING):
        restored = manager.restore(plan.state, plan.frozen)
    assert restored.step == 1
    assert "2 is damaged" in caplog.text
    assert manager.latest_step() == 1
    assert list(tmp_path.glob("damaged_2_*"))
    manager.save(2, state, frozen, {"config": {}, "train_seconds": 0.0})
    manager.wait()
    assert manager.restore(plan.state, plan.frozen).step == 2
    manager.close()


def test_host_arrays_of_a_damaged_checkpoint_are_refused(tmp_path):
    *_, manager = saved(tmp_path)
    manager.close()
    flip(tmp_path / "2" / "params")
    with pytest.raises(CheckpointError, match=r"2/params cannot be read .*earlier step"):
        load_params(tmp_path)
    assert load_params(tmp_path, 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_checksums_see_every_bit_and_the_order(dtype):
    mesh = make_mesh(MeshConfig(preset="fsdp"))
    array = np.arange(64).reshape(16, 4).astype(jnp.dtype(dtype))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*e)) for e in (("fsdp",), ()))
    expected = host_checksum(array)
    assert device_checksums({"a": jax.device_put(array, rows)}) == {"a": expected}
    assert device_checksums({"a": jax.device_put(array, whole)}) == {"a": expected}
    assert host_checksum(array[::-1]) != expected
    for bit in range(8 * array.dtype.itemsize):
        other = array.copy()
        other.view(f"u{array.dtype.itemsize}")[5, 1] ^= np.array(
            1 << bit, f"u{array.dtype.itemsize}"
        )
        assert host_checksum(other) != expected


def test_all_damaged_is_an_error_that_touches_nothing(tmp_path):
    plan, _, _, manager = saved(tmp_path)
    for step in (1, 2):
        (tmp_path / str(step) / "meta" / "metadata").write_text("{")
    with pytest.raises(CheckpointError, match=r"steps \[1, 2\] are damaged"):
        manager.restore(plan.state, plan.frozen)
    assert (tmp_path / "1").is_dir() and (tmp_path / "2").is_dir()
    manager.close()


def test_other_shapes_and_names_are_named(tmp_path):
    plan, _, _, manager = saved(tmp_path)
    bigger = dict(plan.state.params)
    bigger["stem"] = jax.ShapeDtypeStruct((9, 16), bigger["stem"].dtype)
    state = dataclasses.replace(plan.state, params=bigger)
    with pytest.raises(CheckpointError, match=r"params array stem expected .*9, 16.*found \(8, 16"):
        manager.restore(state, plan.frozen)
    frozen_plan = plan_state(toy_config(optim=FREEZE), define(ToyModel))
    with pytest.raises(CheckpointError, match=r"blocks\.down \(and 2 more\).*ckpt\.start_from"):
        manager.restore(frozen_plan.state, frozen_plan.frozen)
    assert manager.latest_step() == 2
    manager.close()


def test_another_schema_version_is_refused(tmp_path):
    plan, _, _, manager = saved(tmp_path)
    meta = tmp_path / "2" / "meta" / "metadata"
    meta.write_text(meta.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    with pytest.raises(CheckpointError, match="schema version 99, expected 1"):
        manager.restore(plan.state, plan.frozen)
    manager.close()


def test_host_arrays_and_inspection(tmp_path):
    _, state, frozen, manager = saved(tmp_path, keep=1, optim=FREEZE)
    manager.close()
    params = load_params(tmp_path)
    assert params.keys() == state.params.keys() | frozen.keys()
    assert all(isinstance(value, np.ndarray) for value in params.values())
    np.testing.assert_array_equal(params["blocks.up"], frozen["blocks.up"])
    arrays = inspect(tmp_path)
    assert arrays["frozen/blocks.up"] == ((2, 16, 24), "float32")
    assert arrays["optimizer/adam.mu.stem"] == ((8, 16), "float32")
    assert read_meta(step_folder(tmp_path))["step"] == 2
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 1; steps found: \[2\]"):
        load_params(tmp_path, 1)
    with pytest.raises(CheckpointError, match="no checkpoint; steps found: none"):
        load_params(tmp_path / "nowhere")


def test_a_loss_that_is_not_finite_stops_before_anything_is_saved(tmp_path):
    def poisoned(start, rows):
        for step, batch in enumerate(toy_batches(start, rows), start):
            if step == 9:
                batch.y[batch.valid] = np.inf
            yield batch

    with pytest.raises(TrainingError, match=r"step 10: .*loss.*samples \[144, 145"):
        train(tmp_path, loader=poisoned)
    assert step_folder(tmp_path / CHECKPOINTS).name == "5"
    assert max(losses(tmp_path)) == 9


def test_hooks_run_on_their_steps_and_once_at_the_end(tmp_path):
    calls = []

    def evaluate(step, state, frozen):
        calls.append((step, int(state.step)))
        return {"eval/score": step / 2}

    result = train(tmp_path, hooks=[Hook(every=8, run=evaluate)])
    assert calls == [(8, 8), (16, 16), (20, 20)]
    records = [r for r in read_metrics(tmp_path / "metrics.jsonl") if "eval/score" in r]
    assert [r["eval/score"] for r in records] == [4.0, 8.0, 10.0]
    assert result.metrics["eval/score"] == 10.0


def test_metric_records_after_the_restored_step_are_dropped(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    for step in (1, 2, 3):
        writer.write(step, {"loss": 0.5 * step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    writer = MetricWriter(tmp_path, 2)
    writer.write(3, {"loss": 9.0})
    writer.close()
    assert losses(tmp_path) == {1: 0.5, 2: 1.0, 3: 9.0}
    assert any((tmp_path / "tensorboard").glob("events*"))


def test_tensorboard_is_left_out_if_not_wanted(tmp_path):
    MetricWriter(tmp_path, 0, tensorboard=False).close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_changed_configuration_is_reported_on_resume(tmp_path, caplog):
    with pytest.raises(TrainingError):
        train(tmp_path, stop_at=8)
    with caplog.at_level(logging.WARNING):
        train(tmp_path, train={"steps": 10}, data={"seed": 3})
    assert "data.seed: 0 -> 3" in caplog.text
