"""REF-VLM itself on eight simulated devices: the same loss as on one, over five steps, in fp32."""

import dataclasses
from functools import partial

import numpy as np
import pytest

from refvlm_jax.cli.run import task_of
from refvlm_jax.config.model import RefVLMConfig
from refvlm_jax.config.schema import DataConfig, MeshConfig, OptimConfig, RunConfig, TrainConfig
from refvlm_jax.mesh.build import batch_sharding, make_mesh, make_rules
from refvlm_jax.models.refvlm import RefVLM
from refvlm_jax.testing.tiny import random_batch, tiny_config, tiny_spec, whole_config
from refvlm_jax.train.loop import plan_state
from refvlm_jax.train.model_def import define
from refvlm_jax.train.run import put_batch
from refvlm_jax.train.state import initialize
from refvlm_jax.train.step import make_train_step

pytestmark = pytest.mark.multidevice
ROWS, STEPS = 8, 5


def run_config(
    mesh: MeshConfig, accumulate: int = 1, model: RefVLMConfig | None = None
) -> RunConfig:
    return RunConfig(
        name="sharded",
        model=model or tiny_config(),
        data=DataConfig(batch_size=ROWS),
        mesh=mesh,
        optim=OptimConfig(lr=1e-3),
        train=TrainConfig(steps=STEPS, accumulate=accumulate),
    )


def losses(
    mesh_config: MeshConfig, accumulate: int = 1, model: RefVLMConfig | None = None
) -> list[float]:
    config = run_config(mesh_config, accumulate, model)
    mesh, rules = make_mesh(mesh_config), make_rules(mesh_config)
    plan = plan_state(config, define(partial(RefVLM, config.model)))
    step = make_train_step(plan, task_of(config), config, mesh, rules)
    state, frozen = initialize(plan, 0)
    found = []
    for index in range(STEPS):
        batch = random_batch(tiny_spec(config.model), ROWS, seed=index)
        batch = put_batch(batch, batch_sharding(mesh, rules), ROWS)
        state, metrics = step(state, frozen, batch)
        found.append(float(metrics["loss"]))
    assert step._cache_size() == 1, "every step after the first must reuse its program"
    return found


@pytest.fixture(scope="module")
def one_device() -> list[float]:
    return losses(MeshConfig(preset="single"))


@pytest.mark.parametrize(
    ("preset", "shape"),
    [("fsdp", (1, 8, 1, 1)), ("fsdp_tp", (1, 4, 1, 2))],
    ids=["fsdp", "fsdp_tp"],
)
def test_eight_devices_give_the_loss_of_one(
    preset: str, shape: tuple[int, int, int, int], one_device: list[float]
) -> None:
    found = losses(MeshConfig(preset=preset, shape=shape))  # type: ignore[arg-type]
    np.testing.assert_allclose(found, one_device, rtol=1e-5)


@pytest.mark.slow
def test_optional_parts_in_micro_batches_give_the_loss_of_one_device() -> None:
    """Tower, adapter and SAM on both kinds of axes at once; the other units are in the test above."""
    model = dataclasses.replace(whole_config(), box=None, keypoint=None, depth=None)
    shape = (1, 4, 1, 2)
    found = losses(MeshConfig(preset="fsdp_tp", shape=shape), accumulate=2, model=model)
    one = losses(MeshConfig(preset="single"), model=model)
    np.testing.assert_allclose(found, one, rtol=1e-5)
