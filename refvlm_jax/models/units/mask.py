"""Mask unit: a MaskFormer-style decoder that turns each `<REF>` state into one mask."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from refvlm_jax.config.model import MaskUnitConfig
from refvlm_jax.models.units.detr import DetrDecoder, project_queries
from refvlm_jax.models.units.features import Map, multiple_select
from refvlm_jax.models.units.fpn import PixelDecoder
from refvlm_jax.models.units.memory import image_memory
from refvlm_jax.models.units.queries import query_codes, visible_queries
from refvlm_jax.nn.linear import MLP, Linear
from refvlm_jax.nn.param import normal, param


class MaskUnit(nnx.Module):
    """Dot product of one embedding a reference with per-pixel embeddings of the pyramid."""

    def __init__(
        self, config: MaskUnitConfig, feature_dims: Sequence[int], query_dim: int, rngs: nnx.Rngs
    ):
        self.config, d = config, config.width
        dims = [feature_dims[i] for i in config.features]
        self.pixel_decoder = PixelDecoder(dims, d, config.norm_groups, rngs)
        # As released: a map that already has the decoder's width is its memory unprojected.
        self.memory = Linear(dims[-1], d, rngs) if dims[-1] != d else None
        self.query = Linear(query_dim, d, rngs)
        law = normal(config.query_init)
        self.query_position = param(rngs, law, (config.num_queries, d), (None, None))
        self.decoder = DetrDecoder(
            d, config.layers, config.heads, config.mlp_dim, rngs, rate=config.dropout
        )
        self.head = MLP((d, d, d, d), rngs)

    def __call__(
        self,
        queries: Float[Array, "B Q D"],
        valid: Bool[Array, "B Q"],
        maps: Sequence[Map],
        dropout_key: Array | None = None,
        *,
        dialog: Int[Array, "B Q"] | None = None,
    ) -> Float[Array, "B Q y x"]:
        """Mask logits at the resolution of the finest chosen map, in fp32."""
        chosen = multiple_select(maps, self.config.features)
        pixels = self.pixel_decoder(chosen)
        memory, position = image_memory(
            chosen[-1],
            self.memory,
            position_cycles=self.config.position_cycles,
            value_positions=self.config.value_positions,
        )
        x = self.decoder(
            project_queries(self.query, queries, valid, self.config.empty_queries),
            query_codes(self.query_position[...], valid, dialog),
            memory,
            position,
            visible_queries(valid, dialog, hide_empty=self.config.mask_padding_queries),
            dropout_key,
        )
        embedding = self.head(x.astype(jnp.float32))
        return jnp.einsum("bqd,byxd->bqyx", embedding, pixels.astype(jnp.float32))
