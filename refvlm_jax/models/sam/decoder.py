"""SAM's mask decoder: prompt tokens read the picture, then name each pixel.

Shape legend: `B` prompts (one picture each), `T` tokens of a prompt, `g` cells of the embedding a
side, `M` masks of a prompt, `D` width.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from refvlm_jax.config.model import SamUnitConfig
from refvlm_jax.models.two_way import TwoWayTransformer
from refvlm_jax.nn.activations import gelu
from refvlm_jax.nn.conv import Upscale2d
from refvlm_jax.nn.linear import MLP
from refvlm_jax.nn.norm import LayerNorm
from refvlm_jax.nn.param import normal, param


class PixelEmbedding(nnx.Module):
    """Doubles the resolution twice, at a quarter and an eighth of the channels."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.up1 = Upscale2d(width, width // 4, rngs)
        self.norm = LayerNorm(width // 4, rngs, eps=1e-6)
        self.up2 = Upscale2d(width // 4, width // 8, rngs)

    def __call__(self, x: Float[Array, "B g g D"]) -> Float[Array, "B y x c"]:
        """Applies the layers."""
        return gelu(self.up2(gelu(self.norm(self.up1(x)))))


class SamMaskDecoder(nnx.Module):
    """Masks of prompts, and estimates of their quality."""

    def __init__(self, config: SamUnitConfig, rngs: nnx.Rngs):
        d, count = config.encoder.out_width, config.mask_tokens
        law = normal(1.0)
        self.iou_token = param(rngs, law, (1, d), (None, None))
        self.mask_tokens = param(rngs, law, (count, d), (None, None))
        self.transformer = TwoWayTransformer(d, config.layers, config.heads, config.mlp_dim, rngs)
        self.pixels = PixelEmbedding(d, rngs)
        self.hyper = nnx.List([MLP((d, d, d, d // 8), rngs) for _ in range(count)])
        hidden = config.iou_hidden
        self.iou = MLP((d, hidden, hidden, count), rngs)

    def __call__(
        self,
        image: Float[Array, "B g g D"],
        image_pos: Float[Array, "N D"],
        prompts: Float[Array, "B T D"],
        *,
        multimask: bool = False,
    ) -> tuple[Float[Array, "B M y x"], Float[Array, "B M"]]:
        """Mask logits at four times the embedding's side, and their estimated IoU, in fp32.

        Args:
          image: embedding of the picture of each prompt, plus that of its mask prompt.
          image_pos: position code of the cells in raster order.
          multimask: the guesses at what an ambiguous prompt means instead of the single mask.
        """
        side, first = image.shape[1], 1 + len(self.hyper)
        own = jnp.concatenate([self.iou_token[...], self.mask_tokens[...]]).astype(prompts.dtype)
        own = jnp.broadcast_to(own, (prompts.shape[0], *own.shape))
        tokens = jnp.concatenate([own, prompts], axis=1)
        flat = image.reshape(image.shape[0], side * side, -1)
        tokens, flat = self.transformer(tokens, flat, image_pos)
        chosen = range(1, len(self.hyper)) if multimask else range(1)
        wide = tokens[:, :first].astype(jnp.float32)
        names = jnp.stack([self.hyper[k](wide[:, 1 + k]) for k in chosen], axis=1)
        pixels = self.pixels(flat.reshape(image.shape)).astype(jnp.float32)
        masks = jnp.einsum("bmc,byxc->bmyx", names, pixels)
        return masks, self.iou(wide[:, 0])[:, chosen.start : chosen.stop]
