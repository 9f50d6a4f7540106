"""Rotary position embedding in the half-rotation layout of Hugging Face's Llama."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotary_angles(
    positions: Int[Array, "B S"], head_dim: int, theta: float
) -> Float[Array, "B S h"]:
    """Angles of the head_dim / 2 rotation planes, in fp32."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    return positions[..., None].astype(jnp.float32) * frequency


def rotate(x: Float[Array, "B S H K"], angles: Float[Array, "B S h"]) -> Float[Array, "B S H K"]:
    """Rotates channel i with channel i + K/2 by angle i, computed in fp32."""
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
