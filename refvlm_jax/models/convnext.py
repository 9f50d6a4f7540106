"""ConvNeXt, the optional visual tower of the unit decoders (arXiv 2201.03545).

Shape legend: `B` pictures, `Y X` pixels, `y x` cells of a map, `C` channels of a stage.
"""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from refvlm_jax.config.model import ConvNextConfig
from refvlm_jax.mesh import constrain
from refvlm_jax.models.clip_vit import normalise_images, resize_images
from refvlm_jax.nn.activations import gelu
from refvlm_jax.nn.conv import Conv2d
from refvlm_jax.nn.linear import Linear
from refvlm_jax.nn.norm import LayerNorm
from refvlm_jax.nn.param import constant, param
from refvlm_jax.nn.stack import Stack

Map = Float[Array, "B y x C"]
PATCH = 4
"""Pixels a side that the stem reduces to one cell."""


class ConvNextBlock(nnx.Module):
    """7x7 depthwise convolution, then two linear maps, on a scaled residual branch.

    Without stochastic depth: the tower is frozen, and its features should not change by chance.
    """

    def __init__(self, channels: int, config: ConvNextConfig, rngs: nnx.Rngs):
        c, hidden = channels, 4 * channels
        # Whole everywhere: for a kernel this small, spread, XLA would gather the pictures instead.
        self.depthwise = Conv2d(c, c, 7, rngs, padding=3, groups=c, axes=(None, None))
        self.norm = LayerNorm(c, rngs, eps=config.norm_eps)
        self.fc1 = Linear(c, hidden, rngs, axes=("vision_embed", None))
        self.fc2 = Linear(hidden, c, rngs, axes=(None, "vision_embed"))
        self.layer_scale = param(rngs, constant(config.layer_scale), (c,), ("norm",))

    def __call__(self, x: Map) -> Map:
        """Applies the block."""
        branch = self.fc2(gelu(self.fc1(self.norm(self.depthwise(x)))))
        return x + branch * self.layer_scale[...].astype(x.dtype)


class Stem(nnx.Module):
    """Patches of 4 x 4 pixels to the channels of the first stage."""

    def __init__(self, config: ConvNextConfig, rngs: nnx.Rngs):
        c = config.dims[0]
        self.conv = Conv2d(3, c, PATCH, rngs, stride=PATCH, axes=(None, "conv_out"))
        self.norm = LayerNorm(c, rngs, eps=config.norm_eps)

    def __call__(self, x: Float[Array, "B Y X 3"]) -> Map:
        """Embeds the patches."""
        return self.norm(self.conv(x))


class Downsample(nnx.Module):
    """Normalises, then halves the resolution."""

    def __init__(self, inputs: int, outputs: int, config: ConvNextConfig, rngs: nnx.Rngs):
        self.norm = LayerNorm(inputs, rngs, eps=config.norm_eps)
        self.conv = Conv2d(inputs, outputs, 2, rngs, stride=2, axes=("conv_in", "conv_out"))

    def __call__(self, x: Map) -> Map:
        """Applies the layer."""
        return self.conv(self.norm(x))


class ConvNext(nnx.Module):
    """A stem and stages of scanned blocks; the output of every stage is a feature map."""

    def __init__(self, config: ConvNextConfig, rngs: nnx.Rngs):
        _check(config)
        self.config = config
        self.stem = Stem(config, rngs)
        self.downsamples = nnx.List(
            [Downsample(i, o, config, rngs) for i, o in itertools.pairwise(config.dims)]
        )
        self.stages = nnx.List(
            [_stage(c, n, config, rngs) for c, n in zip(config.dims, config.depths, strict=True)]
        )

    def __call__(self, images: Array, dtype: jnp.dtype = jnp.float32) -> tuple[Map, ...]:
        """Maps of pictures uint8[B, Y, X, 3] (or float, already normalised), fine to coarse.

        Stage s has `config.dims[s]` channels at 1 / (4 * 2^s) of the picture's resolution; uint8
        pictures are brought to the tower's first.
        """
        pixels = resize_images(images, self.config.image_size, "cubic")
        x = self.stem(normalise_images(pixels, self.config).astype(dtype))
        maps = []
        for index, stage in enumerate(self.stages):
            with jax.named_scope(f"stage{index}"):
                x = x if index == 0 else self.downsamples[index - 1](x)
                x, _ = stage.scan(_body, x)
            maps.append(x)
        return tuple(maps)


def _stage(channels: int, depth: int, config: ConvNextConfig, rngs: nnx.Rngs) -> Stack:
    return Stack(lambda keys: ConvNextBlock(channels, config, keys), depth, rngs)


def _body(block: ConvNextBlock, x: Map, _: None) -> tuple[Map, None]:
    return constrain(block(x), "image", None, None, None), None


def _check(config: ConvNextConfig) -> None:
    if len(config.depths) != len(config.dims):
        raise ValueError(
            f"tower.depths={config.depths} and tower.dims={config.dims} must name the same stages"
        )
    stride = PATCH * 2 ** (len(config.dims) - 1)
    if config.image_size % stride:
        raise ValueError(
            f"tower.image_size={config.image_size} must be a multiple of {stride}, the stride of "
            "the last stage"
        )
