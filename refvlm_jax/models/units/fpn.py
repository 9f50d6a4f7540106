"""MaskFormer's pixel decoder: a feature pyramid without a transformer (arXiv 2107.06278)."""

from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float

from refvlm_jax.models.units.features import Map, nearest
from refvlm_jax.nn.conv import Conv2d
from refvlm_jax.nn.norm import GroupNorm


class ConvNorm(nnx.Module):
    """Bias-free convolution and group normalisation, optionally with ReLU."""

    def __init__(
        self, inputs: int, width: int, kernel: int, groups: int, rngs: nnx.Rngs, relu: bool = True
    ):
        self.conv = Conv2d(inputs, width, kernel, rngs, padding=kernel // 2, bias=False)
        self.norm = GroupNorm(groups, width, rngs)
        self.relu = relu

    def __call__(self, x: Map) -> Map:
        """Applies the layer."""
        x = self.norm(self.conv(x))
        return jax.nn.relu(x) if self.relu else x


class PixelDecoder(nnx.Module):
    """Per-pixel embeddings at the resolution of the finest map."""

    def __init__(self, dims: Sequence[int], width: int, groups: int, rngs: nnx.Rngs):
        """`dims` are the channels of the maps, fine to coarse."""
        lateral = dims[-2::-1]
        self.stem = ConvNorm(dims[-1], width, 3, groups, rngs)
        self.laterals = nnx.List([ConvNorm(c, width, 1, groups, rngs, relu=False) for c in lateral])
        self.blocks = nnx.List([ConvNorm(width, width, 3, groups, rngs) for _ in lateral])
        self.projection = Conv2d(width, width, 3, rngs, padding=1)

    def __call__(self, maps: Sequence[Map]) -> Float[Array, "B y x d"]:
        """Merges the maps from coarse to fine."""
        y = self.stem(maps[-1])
        for lateral, block, x in zip(self.laterals, self.blocks, maps[-2::-1], strict=True):
            y = block(nearest(y, *x.shape[1:3]) + lateral(x))
        return self.projection(y)
