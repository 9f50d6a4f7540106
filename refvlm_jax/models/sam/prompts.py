"""SAM's prompt embeddings: points, boxes, masks, and the position code of the picture.

Places are fractions (x, y) of the padded square, as everywhere in this library. Shape legend: `B`
prompts, `P` points of a prompt, `g` cells of the embedding a side, `D` width.
"""

import enum

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from refvlm_jax.models.two_way import FourierPosition
from refvlm_jax.nn.activations import gelu
from refvlm_jax.nn.conv import Conv2d
from refvlm_jax.nn.norm import LayerNorm
from refvlm_jax.nn.param import normal, param

_NORMAL = normal(1.0)
_CORNER, _OTHER_CORNER = 2, 3  # rows of the kinds of points after the two kinds of clicks
_EPS = 1e-6


class Click(enum.IntEnum):
    """What a point says."""

    NONE = -1
    """Nothing: it fills up an array."""
    AWAY = 0
    """Not what is meant."""
    ON = 1
    """What is meant."""


class MaskPrompt(nnx.Module):
    """Mask logits to a map of the embedding's size: two halving convolutions and a 1x1."""

    def __init__(self, width: int, channels: int, rngs: nnx.Rngs):
        first = channels // 4
        self.conv1 = Conv2d(1, first, 2, rngs, stride=2)
        self.norm1 = LayerNorm(first, rngs, eps=_EPS)
        self.conv2 = Conv2d(first, channels, 2, rngs, stride=2)
        self.norm2 = LayerNorm(channels, rngs, eps=_EPS)
        self.out = Conv2d(channels, width, 1, rngs)

    def __call__(self, logits: Float[Array, "B y x"]) -> Float[Array, "B g g D"]:
        """Embeds masks of four times the embedding's side."""
        x = gelu(self.norm1(self.conv1(logits[..., None])))
        return self.out(gelu(self.norm2(self.conv2(x))))


class PromptEmbedding(nnx.Module):
    """Prompts as tokens (`points`, `boxes`) or as something added to the picture (`masks`)."""

    def __init__(self, width: int, mask_channels: int, image_size: int, rngs: nnx.Rngs):
        """`image_size` is the side of the encoder's input, whose pixels SAM counts in."""
        self.half_pixel = 0.5 / image_size
        self.position = FourierPosition(width, rngs)
        self.kinds = param(rngs, _NORMAL, (4, width), (None, None))
        self.no_point = param(rngs, _NORMAL, (1, width), (None, None))
        self.no_mask = param(rngs, _NORMAL, (1, width), (None, None))
        self.masks = MaskPrompt(width, mask_channels, rngs)

    def points(
        self, places: Float[Array, "*b P 2"], clicks: Int[Array, "*b P"]
    ) -> Float[Array, "*b P D"]:
        """Embeds clicks (see `Click`). Without a box, SAM expects one more that is `Click.NONE`."""
        code = self.position(places + self.half_pixel)
        kinds = self.kinds[...].astype(code.dtype)[jnp.maximum(clicks, 0)]
        none = self.no_point[...].astype(code.dtype)
        return jnp.where((clicks == Click.NONE)[..., None], none, code + kinds)

    def boxes(self, corners: Float[Array, "*b 4"]) -> Float[Array, "*b 2 D"]:
        """Embeds boxes (x1, y1, x2, y2) as their two corners."""
        places = corners.reshape(*corners.shape[:-1], 2, 2) + self.half_pixel
        code = self.position(places)
        return code + self.kinds[...].astype(code.dtype)[_CORNER : _OTHER_CORNER + 1]

    def without_mask(self) -> Float[Array, "1 1 1 D"]:
        """What is added to every cell of the picture where no mask is given."""
        return self.no_mask[...][None, None]
