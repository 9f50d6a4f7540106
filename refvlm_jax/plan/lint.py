"""What a well sharded step does not do: large arrays whole on every device, gathers nobody asked for."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from refvlm_jax.plan.hlo import Collectives
from refvlm_jax.plan.program import Program

LARGE = 2**25
"""Bytes from which an array should not be whole on every device of a mesh."""
SLACK = 1.25
"""Gathered bytes over those that parameters account for."""


def whole_parameters(program: Program) -> list[str]:
    """Large parameters that no axis of the mesh divides."""
    if program.mesh.size == 1:
        return []
    found = []
    for name, leaf in {**program.plan.state.params, **program.plan.frozen}.items():
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        if size >= LARGE and leaf.sharding.shard_shape(leaf.shape) == leaf.shape:
            found.append(
                f"{name} {leaf.shape} is whole on every device, {size / 2**20:.0f} MiB; give it a "
                "dimension that the mesh divides (model.llama.vocab_padding for a vocabulary)"
            )
    return found


def gathers(program: Program, found: Collectives) -> list[str]:
    """Whether more is gathered than the sharded parameters, once a pass over the model."""
    expected, gathered = expected_gathers(program), found.payload("all-gather")
    if gathered <= SLACK * expected + LARGE:
        return []
    return [
        f"{gathered / 2**30:.2f} GiB are gathered a step and device, but the sharded parameters "
        f"account for {expected / 2**30:.2f} GiB; some activation is gathered: look at --json, "
        "collectives, and at the mesh's rules"
    ]


def expected_gathers(program: Program) -> float:
    """Bytes that FSDP gathers in a step, at most: every parameter once forward and once backward.

    Rematerialised layers are gathered once for recomputation and gradient together. Frozen ones
    count backward too: gradients pass through a frozen language model to its LoRA factors.
    """
    dtype = jnp.dtype(program.config.train.compute_dtype)
    leaves = (*program.plan.state.params.values(), *program.plan.frozen.values())
    return 2 * program.config.train.accumulate * sum(_gathered(leaf, dtype) for leaf in leaves)


def _gathered(leaf: jax.ShapeDtypeStruct, dtype: Any) -> float:
    """Bytes of a parameter as a device that holds a part of it along `fsdp` needs it."""
    spread = leaf.sharding.shard_shape(leaf.shape)
    if spread == leaf.shape:
        return 0.0
    axes: Mapping[str, int] = leaf.sharding.mesh.shape  # type: ignore[attr-defined]
    return math.prod(leaf.shape) * dtype.itemsize / axes["tensor"]
