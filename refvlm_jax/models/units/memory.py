"""What a unit decoder reads: a feature map as a sequence with position codes."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from refvlm_jax.models.units.features import Map
from refvlm_jax.models.units.position import sine_position
from refvlm_jax.nn.linear import Linear


def image_memory(
    x: Map,
    project: Linear | None,
    *,
    position_cycles: float = 1.0,
    value_positions: bool = False,
) -> tuple[Float[Array, "B S d"], Float[Array, "S d"]]:
    """Decoder memory of a map in raster order, and the sine code of its cells.

    Args:
      project: to the decoder's width; None for a map that has it already.
      position_cycles: waves of the finest sine across the picture.
      value_positions: whether the memory itself carries the code, not only the attention keys.
    """
    memory = x.reshape(x.shape[0], -1, x.shape[-1])
    if project is not None:
        memory = project(memory)
    code = sine_position(x.shape[1], x.shape[2], memory.shape[-1], position_cycles)
    position = jnp.asarray(code, memory.dtype)
    return (memory + position if value_positions else memory), position
