"""Rotary position embedding in the half-rotation layout of Hugging Face's Llama."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Rotation = tuple[Float[Array, "B S 1 h"], Float[Array, "B S 1 h"]]
"""Cosine and sine of the angle of every position and rotation plane, the same for all heads."""


def rotation(positions: Int[Array, "B S"], head_dim: int, theta: float) -> Rotation:
    """The head_dim / 2 planes' rotations, in fp32; made once, before the layers that use them."""
    # From float64 on the host: the last bit of a frequency counts at far positions.
    frequency = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    angles = positions[..., None, None].astype(jnp.float32) * jnp.asarray(frequency, jnp.float32)
    return jnp.cos(angles), jnp.sin(angles)


@jax.named_scope("rotate")
def rotate(x: Float[Array, "B S H K"], rotary: Rotation) -> Float[Array, "B S H K"]:
    """Rotates channel i with channel i + K/2, computed in fp32."""
    cos, sin = rotary
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
