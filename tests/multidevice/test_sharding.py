"""The same loss on every layout of eight simulated devices."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from refvlm_jax.config.errors import ConfigError
from refvlm_jax.config.schema import MeshConfig
from refvlm_jax.mesh.build import batch_sharding, check_rows, make_mesh, make_rules, mesh_shape
from refvlm_jax.mesh.shardings import param_shardings
from refvlm_jax.testing.toy import ToyModel, toy_batch, toy_batches, toy_config, toy_task
from refvlm_jax.train.loop import fit, plan_state
from refvlm_jax.train.model_def import define
from refvlm_jax.train.run import put_batch
from refvlm_jax.train.state import initialize
from refvlm_jax.train.step import make_train_step

pytestmark = pytest.mark.multidevice

MESHES = {
    "single": {"preset": "single"},
    "fsdp": {"preset": "fsdp", "shape": (1, 8, 1, 1)},
    "hsdp": {"preset": "hsdp", "shape": (2, -1, 1, 1)},
    "fsdp_tp": {"preset": "fsdp_tp", "shape": (1, 4, 1, 2)},
}


def losses(mesh_fields, steps=5):
    config = toy_config(mesh=mesh_fields)
    mesh, rules = make_mesh(config.mesh), make_rules(config.mesh)
    plan = plan_state(config, define(ToyModel))
    step = make_train_step(plan, toy_task(dropout=True), config, mesh, rules)
    state, frozen = initialize(plan, 0)
    result = []
    for index in range(steps):
        batch = put_batch(toy_batch(index, 16), batch_sharding(mesh, rules), 16)
        state, metrics = step(state, frozen, batch)
        result.append(float(metrics["loss"]))
    for leaf in jax.tree.leaves((state, frozen)):
        assert isinstance(leaf.sharding, NamedSharding)
    assert step._cache_size() == 1  # the second step must not compile again
    return result, state


@pytest.fixture(scope="module")
def reference():
    return losses(MESHES["single"])[0]


@pytest.mark.parametrize("name", ["fsdp", "hsdp", "fsdp_tp"])
def test_layouts_agree_with_one_device(name, reference):
    values, state = losses(MESHES[name])
    np.testing.assert_allclose(values, reference, rtol=1e-5, atol=1e-5)
    assert len(state.params["blocks.up"].sharding.device_set) == 8
    spec = {
        "fsdp": PartitionSpec(None, "fsdp", None),
        "hsdp": PartitionSpec(None, "fsdp", None),
        "fsdp_tp": PartitionSpec(None, "fsdp", "tensor"),
    }[name]
    for leaf in (state.params["blocks.up"], state.opt_state["adam"].mu["blocks.up"]):
        whole = NamedSharding(leaf.sharding.mesh, spec)
        assert leaf.sharding.is_equivalent_to(whole, leaf.ndim)
        assert leaf.addressable_shards[0].data.size < leaf.size


def test_a_checkpoint_restores_on_another_mesh(tmp_path):
    def run(mesh, steps):
        config = toy_config(
            mesh=MESHES[mesh], train={"steps": steps}, optim={"schedule": "constant"}
        )
        return fit(config, toy_task(), ToyModel, lambda start: toy_batches(start, 16), tmp_path)

    run("fsdp", 3)
    moved = run("fsdp_tp", 6)
    back = run("single", 8)
    assert (moved.step, back.step) == (6, 8)
    assert back.state.params["stem"].sharding.mesh.size == 1


def test_dimensions_that_do_not_divide_stay_whole(caplog):
    mesh = make_mesh(MeshConfig(**MESHES["fsdp"]))
    rules = make_rules(MeshConfig(**MESHES["fsdp"]))
    shapes = {"odd": (10, 4), "even": (16, 4)}
    axes = {"odd": ("embed", None), "even": ("embed", None)}
    with caplog.at_level(logging.WARNING):
        shardings = param_shardings(shapes, axes, mesh, rules)
    assert shardings["odd"].spec == PartitionSpec(None, None)
    assert shardings["even"].spec == PartitionSpec("fsdp", None)
    assert len(caplog.records) == 1 and "odd (10, 4)" in caplog.text
    assert "even" not in caplog.text


def test_mesh_sizes_are_filled_and_checked():
    config = MeshConfig(preset="fsdp_tp", shape=(1, -1, 1, 2))
    assert mesh_shape(config, 8) == (1, 4, 1, 2)
    with pytest.raises(ConfigError, match=r"\(1, -1, 1, 2\).*7 devices.*multiply to 7"):
        mesh_shape(config, 7)
    with pytest.raises(ConfigError, match="8 devices"):
        make_mesh(MeshConfig(preset="fsdp", shape=(1, 4, 1, 1)))
    assert make_mesh(MeshConfig(preset="fsdp"), jax.devices()[:2]).shape["fsdp"] == 2


def test_rows_must_divide_over_shards_and_micro_batches():
    config = MeshConfig(**MESHES["hsdp"])
    mesh, rules = make_mesh(config), make_rules(config)
    check_rows(16, 2, mesh, rules)
    with pytest.raises(ConfigError, match=r"batch_size = 24.*2 x 8.*multiple of 16"):
        check_rows(24, 2, mesh, rules)


def test_batches_are_split_by_rows():
    config = MeshConfig(**MESHES["fsdp"])
    sharding = batch_sharding(make_mesh(config), make_rules(config))
    batch = put_batch(toy_batch(0, 16), sharding, 16)
    assert batch.x.addressable_shards[0].data.shape == (2, 8)
    np.testing.assert_array_equal(jnp.asarray(batch.y), toy_batch(0, 16).y)
