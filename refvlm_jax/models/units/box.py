"""Box unit: a DETR decoder that turns each `<REF>` state into one box."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from refvlm_jax.config.model import BoxUnitConfig
from refvlm_jax.models.units.detr import DetrDecoder, project_queries
from refvlm_jax.models.units.features import Map, resize_concat
from refvlm_jax.models.units.memory import image_memory
from refvlm_jax.models.units.queries import query_codes, visible_queries
from refvlm_jax.nn.linear import MLP, Linear
from refvlm_jax.nn.param import normal, param


class BoxUnit(nnx.Module):
    """Reads concatenated feature maps; `feature_dims` are the channels of all vision maps."""

    def __init__(
        self, config: BoxUnitConfig, feature_dims: Sequence[int], query_dim: int, rngs: nnx.Rngs
    ):
        self.config, d = config, config.width
        self.memory = Linear(sum(feature_dims[i] for i in config.features), d, rngs)
        self.query = Linear(query_dim, d, rngs)
        self.query_position = param(
            rngs, normal(config.query_init), (config.num_queries, d), (None, None)
        )
        self.decoder = DetrDecoder(
            d, config.layers, config.heads, config.mlp_dim, rngs,
            rate=config.dropout,
        )  # fmt: skip
        self.head = MLP((d, d, d, 4), rngs)

    def __call__(
        self,
        queries: Float[Array, "B Q D"],
        valid: Bool[Array, "B Q"],
        maps: Sequence[Map],
        dropout_key: Array | None = None,
        *,
        dialog: Int[Array, "B Q"] | None = None,
    ) -> Float[Array, "B Q 4"]:
        """(cx, cy, w, h) as fractions of the padded square, in fp32."""
        return self.boxes(self.states(queries, valid, maps, dropout_key, dialog=dialog))

    def states(
        self,
        queries: Float[Array, "B Q D"],
        valid: Bool[Array, "B Q"],
        maps: Sequence[Map],
        dropout_key: Array | None = None,
        *,
        dialog: Int[Array, "B Q"] | None = None,
    ) -> Float[Array, "B Q d"]:
        """Decoded queries after the final norm, before the head.

        Empty slots hold zero queries, which the projection turns into its bias (see
        `BoxUnitConfig.empty_queries`); released weights were trained with them taking part in the
        self-attention, so that stays the default.
        """
        memory, position = image_memory(
            resize_concat(maps, self.config.features),
            self.memory,
            position_cycles=self.config.position_cycles,
            value_positions=self.config.value_positions,
        )
        return self.decoder(
            project_queries(self.query, queries, valid, self.config.empty_queries),
            query_codes(self.query_position[...], valid, dialog),
            memory,
            position,
            visible_queries(valid, dialog, hide_empty=self.config.mask_padding_queries),
            dropout_key,
        )

    def boxes(self, states: Float[Array, "B Q d"]) -> Float[Array, "B Q 4"]:
        """The head: decoded queries to boxes, in fp32."""
        return jax.nn.sigmoid(self.head(states.astype(jnp.float32)))
