"""Keypoint unit: a box decoder whose states become one query a body point and are decoded again.

Shape legend: `B` pictures, `Q` reference slots, `K` body points, `J` = K + 1 queries a slot (its box
first), `d` decoder width.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from refvlm_jax.config.model import KeypointUnitConfig
from refvlm_jax.models.units.box import BoxUnit
from refvlm_jax.models.units.detr import DetrDecoder
from refvlm_jax.models.units.features import Map, resize_concat
from refvlm_jax.models.units.memory import image_memory
from refvlm_jax.models.units.queries import query_codes, visible_queries
from refvlm_jax.nn.linear import MLP, Linear
from refvlm_jax.nn.param import normal, param


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class KeypointOutputs:
    """What the unit says about each slot, in fp32; every array may be scattered back alike."""

    points: Float[Array, "B Q K 2"]
    """(x, y) as fractions of the padded square."""
    visibility: Float[Array, "B Q K 2"]
    """Logits of invisible and visible."""
    boxes: Float[Array, "B Q 4"]
    """(cx, cy, w, h) as fractions of the padded square."""
    first_boxes: Float[Array, "B Q 4"]
    """What the box sub-decoder said; only the auxiliary loss reads them."""


class KeypointUnit(nnx.Module):
    """Reads concatenated feature maps twice: for boxes, then for boxes with body points."""

    def __init__(
        self,
        config: KeypointUnitConfig,
        feature_dims: Sequence[int],
        query_dim: int,
        rngs: nnx.Rngs,
    ):
        self.config, d = config, config.width
        self.box = BoxUnit(config.box, feature_dims, query_dim, rngs)
        self.memory = Linear(sum(feature_dims[i] for i in config.features), d, rngs)
        self.query = Linear(config.box.width, d, rngs)
        queries = config.points + 1
        law = normal(config.query_init)
        self.part = param(rngs, law, (queries, d), (None, None))
        slots = config.num_queries * queries
        self.query_position = param(rngs, law, (slots, d), (None, None))
        self.decoder = DetrDecoder(
            d, config.layers, config.heads, config.mlp_dim, rngs,
            rate=config.dropout, remat=config.remat,
        )  # fmt: skip
        self.box_head = MLP((d, d, d, 4), rngs)
        self.point_head = MLP((d, d, d, 2), rngs)
        self.visibility_head = Linear(d, 2, rngs)

    def __call__(
        self,
        queries: Float[Array, "B Q D"],
        valid: Bool[Array, "B Q"],
        maps: Sequence[Map],
        dropout_key: Array | None = None,
        *,
        dialog: Int[Array, "B Q"] | None = None,
    ) -> KeypointOutputs:
        """Boxes, body points and their visibility for every slot; empty slots as in `BoxUnit`."""
        keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)
        first = self.box.states(queries, valid, maps, keys[0], dialog=dialog)
        x = self._decode(first, valid, maps, keys[1], dialog).astype(jnp.float32)
        whole, points = x[:, :, 0], x[:, :, 1:]
        return KeypointOutputs(
            points=jax.nn.sigmoid(self.point_head(points)),
            visibility=self.visibility_head(points),
            boxes=jax.nn.sigmoid(self.box_head(whole)),
            first_boxes=self.box.boxes(first),
        )

    def _decode(
        self,
        first: Float[Array, "B Q d"],
        valid: Bool[Array, "B Q"],
        maps: Sequence[Map],
        dropout_key: Array | None,
        dialog: Int[Array, "B Q"] | None,
    ) -> Float[Array, "B Q J d"]:
        """All slots' queries attend to one another, slot after slot, the box query first."""
        memory, position = image_memory(
            resize_concat(maps, self.config.features),
            self.memory,
            position_cycles=self.config.position_cycles,
            value_positions=self.config.value_positions,
        )
        x = self.query(first)[:, :, None] + self.part[...].astype(first.dtype)
        rows, slots, queries, width = x.shape
        table = self.query_position[...].reshape(slots, queries, width)
        codes = query_codes(table, valid, dialog)
        seen = visible_queries(valid, dialog, hide_empty=self.config.mask_padding_queries)
        if seen is not None and dialog is not None:
            seen = jnp.repeat(seen, queries, axis=1)
        decoded = self.decoder(
            x.reshape(rows, slots * queries, width),
            codes.reshape(*codes.shape[:-3], slots * queries, width),
            memory,
            position,
            None if seen is None else jnp.repeat(seen, queries, axis=2),
            dropout_key,
        )
        return decoded.reshape(x.shape)


def visible_points(outputs: KeypointOutputs) -> Float[Array, "B Q K 3"]:
    """(x, y, probability of visible): what `geometry.PaddedSquare.points_to_pixels` takes.

    A probability above one half is the class the released model answers.
    """
    odds = outputs.visibility[..., 1] - outputs.visibility[..., 0]
    return jnp.concatenate([outputs.points, jax.nn.sigmoid(odds)[..., None]], axis=-1)
