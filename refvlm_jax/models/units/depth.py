"""Depth unit: each `<REF>` state cuts the depth range into bins, every pixel is a mixture of them.

Adaptive bins (AdaBins, arXiv 2011.14141) with the query decoder and feature pyramid of the mask
unit: the released model names a depth decoder but cannot build one, so this design is ours.
Shape legend: `B` pictures, `Q` reference slots, `N` bins, `y x` cells of the finest map, `d` width.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from refvlm_jax.config.model import DepthUnitConfig
from refvlm_jax.models.units.detr import DetrDecoder
from refvlm_jax.models.units.features import Map
from refvlm_jax.models.units.fpn import PixelDecoder
from refvlm_jax.models.units.memory import image_memory
from refvlm_jax.models.units.queries import query_codes, visible_queries
from refvlm_jax.nn.linear import MLP, Linear
from refvlm_jax.nn.param import normal, param

_FLOOR = 0.1
"""Least share of an even bin that a bin keeps, so that none dies."""


class DepthUnit(nnx.Module):
    """Dense depth of the whole picture for each slot."""

    def __init__(
        self, config: DepthUnitConfig, feature_dims: Sequence[int], query_dim: int, rngs: nnx.Rngs
    ):
        if not 0 < config.min_depth < config.max_depth:
            raise ValueError(
                f"depth.min_depth={config.min_depth} and depth.max_depth={config.max_depth} must "
                "satisfy 0 < min_depth < max_depth; both are metres"
            )
        self.config, d = config, config.width
        dims = [feature_dims[i] for i in config.features]
        self.pixel_decoder = PixelDecoder(dims, d, config.norm_groups, rngs)
        self.memory = Linear(dims[-1], d, rngs)
        self.query = Linear(query_dim, d, rngs)
        self.query_position = param(
            rngs, normal(config.query_init), (config.num_queries, d), (None, None)
        )
        self.decoder = DetrDecoder(
            d, config.layers, config.heads, config.mlp_dim, rngs, rate=config.dropout
        )
        self.widths = MLP((d, d, config.bins), rngs)
        self.gain = MLP((d, d, d), rngs)
        # Pixel embeddings have about unit variance, so their products with these do too.
        self.bins = param(rngs, normal(d**-0.5), (config.bins, d), (None, None))

    def __call__(
        self,
        queries: Float[Array, "B Q D"],
        valid: Bool[Array, "B Q"],
        maps: Sequence[Map],
        dropout_key: Array | None = None,
        *,
        dialog: Int[Array, "B Q"] | None = None,
    ) -> Float[Array, "B Q y x"]:
        """Depth at the resolution of the finest chosen map, in fp32.

        Metres strictly between the configured bounds; or, for `mode='relative'`, inverse depth up
        to scale and shift, in (0, 1). Padding of the square has some depth too: crop it away.
        """
        chosen = [maps[i] for i in self.config.features]
        pixels = self.pixel_decoder(chosen).astype(jnp.float32)
        x = self._decode(queries, valid, chosen[-1], dropout_key, dialog).astype(jnp.float32)
        # A factor: what a query only added to every bin alike, the softmax would cancel.
        keys = self.bins[...] * (1.0 + self.gain(x))[:, :, None]
        shares = jax.nn.softmax(jnp.einsum("bqnd,byxd->bqyxn", keys, pixels), axis=-1)
        place = jnp.einsum("bqyxn,bqn->bqyx", shares, self.centres(x))
        if self.config.mode == "relative":
            return place
        near, far = math.log(self.config.min_depth), math.log(self.config.max_depth)
        return jnp.exp(near + (far - near) * place)

    def centres(self, states: Float[Array, "B Q d"]) -> Float[Array, "B Q N"]:
        """Rising centres of the bins as fractions of the range (of logarithms, for metres)."""
        share = jax.nn.softmax(self.widths(states), axis=-1)
        width = (1.0 - _FLOOR) * share + _FLOOR / self.config.bins
        return jnp.cumsum(width, axis=-1) - width / 2

    def _decode(
        self,
        queries: Float[Array, "B Q D"],
        valid: Bool[Array, "B Q"],
        coarse: Map,
        dropout_key: Array | None,
        dialog: Int[Array, "B Q"] | None,
    ) -> Float[Array, "B Q d"]:
        memory, position = image_memory(
            coarse,
            self.memory,
            position_cycles=self.config.position_cycles,
            value_positions=self.config.value_positions,
        )
        return self.decoder(
            self.query(queries),
            query_codes(self.query_position[...], valid, dialog),
            memory,
            position,
            visible_queries(valid, dialog, hide_empty=self.config.mask_padding_queries),
            dropout_key,
        )
