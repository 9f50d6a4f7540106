"""Memory and FLOPs of a run without any compiler for its hardware.

The step is traced once at the sizes that one device sees: its share of rows, heads, hidden channels and
positions. State is exact; activations are the peak of `plan.liveness` over those equations.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from refvlm_jax.config.errors import ConfigError
from refvlm_jax.config.schema import MeshConfig, RunConfig
from refvlm_jax.mesh.build import make_rules
from refvlm_jax.plan.flops import Flops, count_flops
from refvlm_jax.plan.liveness import Peak, peak_of
from refvlm_jax.plan.program import StateBytes, abstract_state, leaf_bytes, state_bytes, trace_step
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


def estimate(config: RunConfig, devices: int) -> Estimate:
    """Estimates a step on that many devices.

    Raises:
      ConfigError: the batch does not divide over the mesh.
    """
    plan, mesh = abstract_state(config, devices)
    local = local_config(config, mesh)
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


def local_config(config: RunConfig, mesh: Mapping[str, int]) -> RunConfig:
    """The run as one device sees it: one micro-batch of its rows, its heads and its positions."""
    rules = make_rules(config.mesh)
    batch_axes = rules.batch or ()
    shards = math.prod(
        mesh[a] for a in ((batch_axes,) if isinstance(batch_axes, str) else batch_axes)
    )
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
        vocab_size=part(llama.vocab_size),
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
