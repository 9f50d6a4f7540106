"""The one way a module declares a parameter: how it starts, shape and logical axes together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx


@dataclass(frozen=True)
class Law:
    """How a parameter starts: data rather than a function, so that many can be drawn at once."""

    kind: Literal["normal", "uniform", "constant"]
    scale: float
    """Standard deviation, bound of U(-scale, scale), or the constant itself."""

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """One parameter drawn on its own."""
        if self.kind == "constant":
            return jnp.full(shape, self.scale, dtype)
        return standard(self.kind, key, shape, dtype) * self.scale


def standard(
    kind: Literal["normal", "uniform"], key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype
) -> jax.Array:
    """Draws of scale 1."""
    if kind == "normal":
        return jax.random.normal(key, shape, dtype)
    return jax.random.uniform(key, shape, dtype, -1.0, 1.0)


def normal(deviation: float) -> Law:
    """Normal around 0."""
    return Law("normal", deviation)


def uniform(bound: float) -> Law:
    """U(-bound, bound)."""
    return Law("uniform", bound)


def constant(value: float) -> Law:
    """Always the same."""
    return Law("constant", value)


zeros, ones = constant(0.0), constant(1.0)


def param(
    rngs: nnx.Rngs,
    law: Law,
    shape: Sequence[int],
    axes: Sequence[str | None],
    dtype: jnp.dtype = jnp.float32,
) -> nnx.Param:
    """A parameter whose dimensions carry the logical `axes` (`refvlm_jax.mesh.ShardingRules`).

    `axes` is our own metadata rather than Flax's sharding names, so that constructing a module
    never needs a mesh; the law is kept beside it, for `refvlm_jax.train.draw`.
    """
    if len(shape) != len(axes):
        raise ValueError(f"shape {tuple(shape)} and logical axes {tuple(axes)} differ in length")
    value = law(rngs.params(), tuple(shape), dtype)
    return nnx.Param(value, axes=tuple(axes), law=law)
