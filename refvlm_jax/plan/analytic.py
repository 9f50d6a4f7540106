"""Memory and FLOPs of a run without any compiler for its hardware.

The step is traced once at the sizes that one device sees: its share of rows, heads, hidden channels and
positions. State is exact; activations are the peak of `plan.liveness` over those equations.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from refvlm_jax.config.errors import ConfigError
from refvlm_jax.config.schema import MeshConfig, RunConfig
from refvlm_jax.mesh.build import make_rules, mesh_shape
from refvlm_jax.mesh.rules import MESH_AXES
from refvlm_jax.plan.flops import Flops, count_flops
from refvlm_jax.plan.generation import Phase, abstract_cache, in_place, serving, trace_generation
from refvlm_jax.plan.liveness import Peak, peak_of
from refvlm_jax.plan.program import (
    StateBytes,
    abstract_state,
    leaf_bytes,
    plain_attention,
    planned_shards,
    state_bytes,
    trace_step,
    tree_bytes,
)
from refvlm_jax.train.state import StatePlan


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What one device needs and does, estimated."""

    state: StateBytes
    accumulators: int
    """Gradients summed over micro-batches."""
    activations: Peak
    flops: Flops
    """Of one device's rows of the whole batch."""

    @property
    def peak(self) -> float:
        """Bytes at the worst moment of a step."""
        return self.state.total + self.accumulators + self.activations.bytes


def estimate(config: RunConfig, devices: int, phase: Phase = "train") -> Estimate:
    """Estimates a step of training or of generation on that many devices.

    Raises:
      ConfigError: the batch does not divide over the mesh.
    """
    config = plain_attention(config)
    if phase != "train":
        return _estimate_generation(serving(config, devices), devices, phase)
    plan, mesh = abstract_state(config, devices)
    local = local_config(config, devices)
    program = trace_step(local, jax.devices()[:1])
    parts = config.train.accumulate
    flops = count_flops(program.jaxpr)
    for name in ("total", "model", "product_bytes"):
        setattr(flops, name, getattr(flops, name) * parts)
    flops.by_module = {module: n * parts for module, n in flops.by_module.items()}
    abstract = jax.sharding.AbstractMesh(tuple(mesh.values()), tuple(mesh))
    accumulators = sum(
        leaf_bytes(jax.ShapeDtypeStruct(p.shape, jnp.float32, sharding=p.sharding))
        for p in plan.state.params.values()
    )
    return Estimate(
        state=state_bytes(plan, config, abstract),
        accumulators=accumulators if parts > 1 else 0,
        activations=peak_of(program.jaxpr, _shards(plan, program.plan)),
        flops=flops,
    )


def _estimate_generation(config: RunConfig, devices: int, phase: Phase) -> Estimate:
    plan, mesh = abstract_state(config, devices)
    local = local_config(config, devices)
    program = trace_generation(local, jax.devices()[:1], phase)
    abstract = jax.sharding.AbstractMesh(tuple(mesh.values()), tuple(mesh))
    cache = abstract_cache(config, abstract, make_rules(config.mesh))
    state = state_bytes(plan, config, abstract)
    batch = state.batch if phase == "prefill" else 0
    return Estimate(
        state=dataclasses.replace(state, optimizer=0, batch=batch, cache=tree_bytes(cache)),
        accumulators=0,
        activations=peak_of(program.jaxpr, _shards(plan, program.plan) | in_place(local)),
        flops=count_flops(program.jaxpr),
    )


def local_config(config: RunConfig, devices: int) -> RunConfig:
    """The run as one device sees it: one micro-batch of its rows, its heads and its positions."""
    mesh = dict(zip(MESH_AXES, mesh_shape(config.mesh, devices), strict=True))
    shards = planned_shards(config, devices)
    rows, rest = divmod(config.data.batch_size, config.train.accumulate * shards)
    if rest or not rows:
        unit = config.train.accumulate * shards
        raise ConfigError(
            f"data.batch_size = {config.data.batch_size} is not divisible by train.accumulate x "
            f"batch shards = {unit}; use a multiple of {unit}"
        )
    tensor, seq = mesh["tensor"], mesh["seq"]
    llama = config.model.llama

    def part(size: int) -> int:
        return size // tensor if size % tensor == 0 else size

    llama = dataclasses.replace(
        llama,
        heads=part(llama.heads) if llama.kv_heads % tensor == 0 else llama.heads,
        kv_heads=part(llama.kv_heads),
        mlp_dim=part(llama.mlp_dim),
        vocab_size=part(llama.vocab_rows),
        vocab_padding=0,
    )
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, llama=llama),
        data=dataclasses.replace(config.data, batch_size=rows, seq_len=config.data.seq_len // seq),
        mesh=MeshConfig(preset="single", shape=(1, 1, 1, 1)),
        train=dataclasses.replace(config.train, accumulate=1),
    )


def _shards(plan: StatePlan, local: StatePlan) -> dict[tuple[int, ...], float]:
    """Shape of a parameter in the local program -> devices that share it in the real one."""
    real = {**plan.state.params, **plan.frozen}
    found: dict[tuple[int, ...], float] = {}
    for name, leaf in {**local.state.params, **local.frozen}.items():
        share = math.prod(real[name].sharding.shard_shape(real[name].shape))
        if len(leaf.shape) > 1 and share:
            found[leaf.shape] = math.prod(leaf.shape) / share
    return found
