"""Normalisation layers. Statistics are taken in fp32, the result has the dtype of the input."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from refvlm_jax.nn.param import ones, param, zeros


class LayerNorm(nnx.Module):
    """Normalises the last axis to mean 0 and variance 1, then scales and shifts."""

    def __init__(self, features: int, rngs: nnx.Rngs, *, eps: float = 1e-5):
        self.eps = eps
        self.scale = param(rngs, ones, (features,), ("norm",))
        self.bias = param(rngs, zeros, (features,), ("norm",))

    @jax.named_scope("layer_norm")
    def __call__(self, x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
        """Normalises each vector."""
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.eps)
        return (normal * self.scale[...] + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Divides by the root mean square of the last axis, then scales (Llama)."""

    def __init__(self, features: int, rngs: nnx.Rngs, *, eps: float = 1e-5):
        self.eps = eps
        self.scale = param(rngs, ones, (features,), ("norm",))

    @jax.named_scope("rms_norm")
    def __call__(self, x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
        """Normalises each vector."""
        wide = x.astype(jnp.float32)
        normal = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.eps)
        # As in Hugging Face: the cast comes before the scale.
        return normal.astype(x.dtype) * self.scale[...].astype(x.dtype)


class GroupNorm(nnx.Module):
    """Normalises groups of channels over all positions of an NHWC map."""

    def __init__(self, groups: int, channels: int, rngs: nnx.Rngs, *, eps: float = 1e-5):
        if channels % groups:
            raise ValueError(f"{channels} channels cannot be cut into {groups} groups")
        self.groups, self.eps = groups, eps
        self.scale = param(rngs, ones, (channels,), ("norm",))
        self.bias = param(rngs, zeros, (channels,), ("norm",))

    @jax.named_scope("group_norm")
    def __call__(self, x: Float[Array, "B y x C"]) -> Float[Array, "B y x C"]:
        """Normalises each group of each picture."""
        b, h, w, c = x.shape
        wide = x.astype(jnp.float32).reshape(b, h * w, self.groups, c // self.groups)
        centred = wide - wide.mean((1, 3), keepdims=True)
        variance = jnp.square(centred).mean((1, 3), keepdims=True)
        normal = (centred * jax.lax.rsqrt(variance + self.eps)).reshape(x.shape)
        return (normal * self.scale[...] + self.bias[...]).astype(x.dtype)
