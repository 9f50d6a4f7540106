"""Rotary position embedding in the half-rotation layout of Hugging Face's Llama."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def rotary_angles(
    positions: Int[Array, "B S"], head_dim: int, theta: float
) -> Float[Array, "B S h"]:
    """Angles of the head_dim / 2 rotation planes, in fp32."""
    # From float64 on the host: the last bit of a frequency counts at far positions.
    frequency = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    return positions[..., None].astype(jnp.float32) * jnp.asarray(frequency, jnp.float32)


@jax.named_scope("rotate")
def rotate(x: Float[Array, "B S H K"], angles: Float[Array, "B S h"]) -> Float[Array, "B S H K"]:
    """Rotates channel i with channel i + K/2 by angle i, computed in fp32."""
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
