"""Losses of a few steps of a tiny REF-VLM on any mesh (test code)."""

from functools import partial

from refvlm_jax.cli.run import task_of
from refvlm_jax.config.model import RefVLMConfig
from refvlm_jax.config.schema import DataConfig, MeshConfig, OptimConfig, RunConfig, TrainConfig
from refvlm_jax.mesh.build import batch_sharding, make_mesh, make_rules
from refvlm_jax.models.refvlm import RefVLM
from refvlm_jax.testing.tiny import random_batch, tiny_config, tiny_spec
from refvlm_jax.train.loop import plan_state
from refvlm_jax.train.model_def import define
from refvlm_jax.train.run import put_batch
from refvlm_jax.train.state import initialize
from refvlm_jax.train.step import make_train_step

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
