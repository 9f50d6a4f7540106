"""The one way a module declares a parameter: initialiser, shape and logical axes together."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

Initializer = Callable[..., jax.Array]


def param(
    rngs: nnx.Rngs,
    init: Initializer,
    shape: Sequence[int],
    axes: Sequence[str | None],
    dtype: jnp.dtype = jnp.float32,
) -> nnx.Param:
    """A parameter whose dimensions carry the logical `axes` (`refvlm_jax.mesh.ShardingRules`).

    `axes` is our own metadata rather than Flax's sharding names, so that constructing a module
    never needs a mesh.
    """
    if len(shape) != len(axes):
        raise ValueError(f"shape {tuple(shape)} and logical axes {tuple(axes)} differ in length")
    return nnx.Param(init(rngs.params(), tuple(shape), dtype), axes=tuple(axes))
