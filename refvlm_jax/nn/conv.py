"""Two-dimensional convolutions on NHWC maps."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from refvlm_jax.nn.linear import torch_uniform
from refvlm_jax.nn.param import param


class Conv2d(nnx.Module):
    """Square convolution with kernel[k, k, in / groups, out]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        rngs: nnx.Rngs,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = True,
        axes: tuple[str | None, str | None] = (None, None),
    ):
        self.stride, self.padding, self.groups = stride, padding, groups
        inputs = in_channels // groups
        law = torch_uniform(inputs * kernel * kernel)
        shape = (kernel, kernel, inputs, out_channels)
        self.kernel = param(rngs, law, shape, (None, None, *axes))
        self.bias = param(rngs, law, (out_channels,), axes[1:]) if bias else None

    @jax.named_scope("conv")
    def __call__(self, x: Float[Array, "B y x I"]) -> Float[Array, "B v u O"]:
        """Applies the convolution."""
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            (self.stride, self.stride),
            [(self.padding, self.padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class Upscale2d(nnx.Module):
    """Doubles the resolution: each cell becomes 2 x 2 cells, by kernel[2, 2, in, out].

    PyTorch's ConvTranspose2d of size and stride 2, whose patches do not overlap.
    """

    def __init__(self, in_channels: int, out_channels: int, rngs: nnx.Rngs):
        # PyTorch counts the inputs of a transposed convolution from its output.
        law = torch_uniform(out_channels * 4)
        shape = (2, 2, in_channels, out_channels)
        self.kernel = param(rngs, law, shape, (None, None, None, None))
        self.bias = param(rngs, law, (out_channels,), (None,))

    @jax.named_scope("upscale")
    def __call__(self, x: Float[Array, "B y x I"]) -> Float[Array, "B v u O"]:
        """Applies the layer."""
        b, h, w, _ = x.shape
        cells = jnp.einsum("byxi,vuio->byvxuo", x, self.kernel[...].astype(x.dtype))
        return cells.reshape(b, 2 * h, 2 * w, -1) + self.bias[...].astype(x.dtype)
