"""Segment Anything as a mask unit: each `<REF>` state is one prompt of its mask decoder.

Shape legend: `B` pictures, `Q` reference slots, `D` width of the language model, `g` cells of the
embedding a side, `d` width of the decoder.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from refvlm_jax.config.model import SamUnitConfig
from refvlm_jax.models.sam.decoder import SamMaskDecoder
from refvlm_jax.models.sam.encoder import SamEncoder
from refvlm_jax.models.sam.prompts import PromptEmbedding
from refvlm_jax.models.units.features import Map
from refvlm_jax.nn.linear import MLP


class SamUnit(nnx.Module):
    """Stands in for `MaskUnit`, with its own view of the picture (`encode`)."""

    def __init__(self, config: SamUnitConfig, query_dim: int, rngs: nnx.Rngs):
        if config.num_queries % config.chunk:
            raise ValueError(
                f"sam.num_queries={config.num_queries} must be a multiple of "
                f"sam.chunk={config.chunk}, the references decoded at a time"
            )
        self.config, d = config, config.encoder.out_width
        self.encoder = SamEncoder(config.encoder, rngs)
        size = config.encoder.image_size
        self.prompts = PromptEmbedding(d, config.mask_prompt_channels, size, rngs)
        self.decoder = SamMaskDecoder(config, rngs)
        self.query = MLP((query_dim, query_dim, d), rngs)

    def encode(self, images: Array, dtype: jnp.dtype = jnp.float32) -> Map:
        """The feature map the unit reads, from square-padded pictures uint8[B, Y, X, 3].

        As in the reference, the padding has the mean colour and not the zeros SAM was trained with.
        """
        with jax.named_scope("sam_encoder"):
            return self.encoder(images, dtype)

    def __call__(
        self,
        queries: Float[Array, "B Q D"],
        valid: Bool[Array, "B Q"],
        maps: Sequence[Map],
        dropout_key: Array | None = None,
        *,
        dialog: Int[Array, "B Q"] | None = None,
    ) -> Float[Array, "B Q y x"]:
        """Mask logits in fp32, zeros in empty slots.

        Args:
          maps: the last one is what `encode` gave.
          dropout_key, dialog: as in `MaskUnit`; here nothing is dropped, and references never see
            one another.
        """
        picture = maps[-1]
        picture = picture + self.prompts.without_mask().astype(picture.dtype)
        position = self.prompts.position.grid(*picture.shape[1:3])
        side = 4 * picture.shape[1]

        def decode(prompts: Float[Array, "B c d"]) -> Float[Array, "B c y x"]:
            rows, count = prompts.shape[:2]
            pictures = jnp.repeat(picture, count, axis=0)
            tokens = prompts.reshape(rows * count, 1, -1)
            masks, _ = self.decoder(pictures, position, tokens)
            return masks.reshape(rows, count, side, side)

        def body(pair: tuple[Array, Array]) -> Float[Array, "B c y x"]:
            prompts, filled = pair
            empty = jnp.zeros((*filled.shape, side, side), jnp.float32)
            found = jax.lax.cond(filled.any(), decode, lambda _: empty, prompts)
            return jnp.where(filled[..., None, None], found, 0)

        chunks = (self._chunks(self.query(queries)), self._chunks(valid))
        # Slots fill up from the first, so that most chunks are empty and cost nothing.
        logits = jax.lax.map(jax.checkpoint(body, prevent_cse=False), chunks)
        return jnp.moveaxis(logits, 0, 1).reshape(*valid.shape, side, side)

    def _chunks(self, x: Float[Array, "B Q *rest"]) -> Float[Array, "n B c *rest"]:
        """Slots cut into chunks, the chunks first."""
        return jnp.moveaxis(x.reshape(x.shape[0], -1, self.config.chunk, *x.shape[2:]), 1, 0)
