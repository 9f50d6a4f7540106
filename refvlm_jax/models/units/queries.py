"""The query slots of a decoder when a row holds dialogues that must not see each other.

Shape legend: `N` pictures, `Q` query slots.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def visible_queries(
    valid: Bool[Array, "N Q"], dialog: Int[Array, "N Q"] | None, *, hide_empty: bool
) -> Bool[Array, "N q Q"] | None:
    """Which slots (last axis) each slot sees in self-attention; None for all. `q` is Q or 1.

    Args:
      valid: the slot is filled.
      dialog: dialogue of a filled slot; slots of other dialogues stay unseen. None: one dialogue.
      hide_empty: empty slots stay unseen. Otherwise all slots see all, as released weights expect:
        empty ones would carry what one dialogue says to the others, so there must be only one.
    """
    if not hide_empty:
        return None
    seen = valid[:, None, :]
    if dialog is not None:
        seen = seen & (dialog[:, :, None] == dialog[:, None, :])
    return seen


def query_codes(
    table: Float[Array, "Q *d"], valid: Bool[Array, "N Q"], dialog: Int[Array, "N Q"] | None
) -> Array:
    """Learned position codes of the slots: each dialogue counts its own from 0, as it would alone.

    Returns the table [Q, *d] itself, or [N, Q, *d] where dialogues are told apart.
    """
    if dialog is None:
        return table
    same = (dialog[:, :, None] == dialog[:, None, :]) & valid[:, None, :]
    slots = jnp.arange(valid.shape[1])
    rank = (same & (slots[:, None] > slots[None, :])).sum(-1)
    return table[jnp.where(valid, rank, slots)]
