"""From the reference table to decoder query slots and back.

A batch lists its references in one table [B, R] with unit, image and position of each. Each unit
decoder runs once per (row, image) over Q slots; the references of its unit in that image fill the
slots in text order, those beyond Q are not decoded.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from refvlm_jax.trp.tokens import Unit


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SlotMap:
    """Which reference fills which query slot."""

    slot: Int[Array, "B R"]
    """Slot of a reference; -1 for another unit, an empty reference or an overflow."""
    image: Int[Array, "B R"]
    """Image of a reference."""
    index: Int[Array, "B I Q"]
    """Reference in a slot; 0 where the slot is empty."""
    valid: Bool[Array, "B I Q"]
    """The slot is filled."""


def slots(
    ref_valid: Bool[Array, "B R"],
    ref_unit: Int[Array, "B R"],
    ref_image: Int[Array, "B R"],
    unit: Unit,
    images: int,
    num_queries: int,
) -> SlotMap:
    """Assigns the references of one unit to slots, per image, in text order."""
    own = jnp.asarray(ref_valid) & (jnp.asarray(ref_unit) == int(unit))
    of_image = own[:, None] & (jnp.asarray(ref_image)[:, None] == jnp.arange(images)[None, :, None])
    rank = jnp.cumsum(of_image, axis=-1) - 1
    fills = (rank[..., None, :] == jnp.arange(num_queries)[:, None]) & of_image[..., None, :]
    slot = jnp.where(of_image & (rank < num_queries), rank, -1).max(axis=1)
    return SlotMap(
        slot=slot, image=jnp.asarray(ref_image), index=fills.argmax(-1), valid=fills.any(-1)
    )


def gather_queries(
    hidden: Float[Array, "B S D"], ref_pos: Int[Array, "B R"], table: SlotMap
) -> Float[Array, "N Q D"]:
    """Hidden states of the references in their slots, N = B * I; zeros in empty slots."""
    rows, images, queries = table.index.shape
    flat = table.index.reshape(rows, -1)
    place = jnp.take_along_axis(jnp.asarray(ref_pos), flat, axis=1)
    states = jnp.take_along_axis(hidden, place[..., None], axis=1)
    states = jnp.where(table.valid.reshape(rows, -1, 1), states, 0)
    return states.reshape(rows * images, queries, -1)


def scatter_back(per_slot: Float[Array, "N Q *rest"], table: SlotMap) -> Float[Array, "B R *rest"]:
    """Decoder results [B * I, Q, ...] in the order of the reference table; zeros elsewhere."""
    rows, images, queries = table.index.shape
    stacked = per_slot.reshape(rows, images, queries, *per_slot.shape[2:])
    taken = jax.vmap(lambda row, i, q: row[i, q])(stacked, table.image, jnp.maximum(table.slot, 0))
    keep = (table.slot >= 0).reshape(*table.slot.shape, *(1,) * (taken.ndim - 2))
    return jnp.where(keep, taken, 0)


def slot_dialogs(dialog: Int[Array, "B R"] | None, table: SlotMap) -> Int[Array, "N Q"] | None:
    """Dialogue of the reference in each slot, N = B * I; anything in empty slots."""
    if dialog is None:
        return None
    rows, images, queries = table.index.shape
    taken = jnp.take_along_axis(dialog, table.index.reshape(rows, -1), axis=1)
    return taken.reshape(rows * images, queries)
