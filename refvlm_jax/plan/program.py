"""The train step of a run as a program for described devices; nothing is allocated."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding

from refvlm_jax.batch import abstract_batch
from refvlm_jax.cli.run import batch_spec, build_model, task_of
from refvlm_jax.config.schema import RunConfig
from refvlm_jax.mesh.build import (
    batch_sharding,
    batch_shards,
    check_rows,
    make_mesh,
    make_rules,
    mesh_shape,
)
from refvlm_jax.mesh.rules import MESH_AXES
from refvlm_jax.train.loop import plan_state
from refvlm_jax.train.model_def import define
from refvlm_jax.train.optim import check_trained
from refvlm_jax.train.state import StatePlan
from refvlm_jax.train.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Program:
    """A traced step and what goes into it."""

    config: RunConfig
    mesh: Any
    """Devices, or an abstract mesh where only sizes are needed."""
    plan: StatePlan
    batch: Any
    """Abstract global batch."""
    traced: Any
    """`jax.stages.Traced` of the very step that the trainer runs."""

    @property
    def jaxpr(self) -> Any:
        """The step's equations."""
        return self.traced.jaxpr.jaxpr


@dataclasses.dataclass(frozen=True)
class StateBytes:
    """Bytes a device of what lives through the whole step, from shapes and shardings."""

    params: int
    frozen: int
    optimizer: int
    batch: int
    cache: int = 0
    """Keys and values of generation."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.params + self.frozen + self.optimizer + self.batch + self.cache


def plain_attention(config: RunConfig) -> RunConfig:
    """The run with XLA's attention in blocks, which can be traced and compiled for anything."""
    llama = config.model.llama
    if llama.attention == "xla":
        return config
    block = 512 if config.data.seq_len > 512 else 0
    llama = dataclasses.replace(llama, attention="xla", attention_block=block)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, llama=llama))


def trace_step(config: RunConfig, devices: Sequence[jax.Device]) -> Program:
    """Traces the run's step on these devices, described or real.

    Raises:
      ConfigError: the configuration does not fit the devices or the model.
    """
    mesh, rules = make_mesh(config.mesh, devices), make_rules(config.mesh)
    check_rows(config.data.batch_size, config.train.accumulate, mesh, rules)
    model = define(partial(build_model, config))
    check_trained(config.optim, list(model.axes))
    plan = plan_state(config, model, mesh)
    step = make_train_step(plan, task_of(config), config, mesh, rules)
    layout = batch_sharding(mesh, rules)
    batch = laid_out_batch(config, layout)
    traced = step.trace(plan.state, plan.frozen, batch)  # type: ignore[attr-defined]
    return Program(config, mesh, plan, batch, traced)


def abstract_state(config: RunConfig, devices: int) -> tuple[StatePlan, Mapping[str, int]]:
    """The state's layout on a number of devices that need not even be described."""
    shape = mesh_shape(config.mesh, devices)
    mesh = jax.sharding.AbstractMesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
    plan = plan_state(config, define(partial(build_model, config)), mesh)  # type: ignore[arg-type]
    return plan, dict(mesh.shape)


def state_bytes(plan: StatePlan, config: RunConfig, mesh: Any) -> StateBytes:
    """Bytes a device of parameters, optimiser and one global batch."""
    rules = make_rules(config.mesh)
    layout = NamedSharding(mesh, rules.spec(("batch",)))
    batch = laid_out_batch(config, layout)
    return StateBytes(
        params=tree_bytes(plan.state.params),
        frozen=tree_bytes(plan.frozen),
        optimizer=tree_bytes(plan.state.opt_state),
        batch=tree_bytes(batch),
    )


def laid_out_batch(config: RunConfig, layout: NamedSharding) -> Any:
    """The abstract global batch of a run, its rows spread by `layout`."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout),
        abstract_batch(batch_spec(config), config.data.batch_size),
    )


def planned_shards(config: RunConfig, devices: int) -> int:
    """Parts that the rows of a batch are split into on so many devices."""
    sizes = dict(zip(MESH_AXES, mesh_shape(config.mesh, devices), strict=True))
    return batch_shards(sizes, make_rules(config.mesh))


def tree_bytes(tree: Any) -> int:
    """Bytes a device of abstract arrays with shardings."""
    return sum(leaf_bytes(leaf) for leaf in jax.tree.leaves(tree))


def leaf_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    """Bytes a device of one abstract array."""
    size = leaf.dtype.itemsize
    for n in leaf.sharding.shard_shape(leaf.shape):
        size *= n
    return size
