"""Scaled dot-product attention with grouped keys, and the masks of packed sequences."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@jax.named_scope("attention")
def attention(
    q: Float[Array, "B S H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G W"],
    mask: Bool[Array, "B 1 S T"] | None = None,
    *,
    scale: float | None = None,
) -> Float[Array, "B S H W"]:
    """softmax(q k^T * scale) v with H a multiple of the G key heads; the softmax runs in fp32.

    Values may have another width than queries and keys.

    A query whose mask row is empty attends to everything equally: finite, and ignored by losses.
    """
    b, s, h, d = q.shape
    groups = k.shape[2]
    scale = d**-0.5 if scale is None else scale
    grouped = q.reshape(b, s, groups, h // groups, d)
    # Asked of the product itself: a bf16 score cast afterwards would already be rounded.
    scores = jnp.einsum("bsghk,btgk->bghst", grouped, k, preferred_element_type=jnp.float32) * scale
    if mask is not None:
        scores = jnp.where(mask[:, :, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bghst,btgw->bsghw", weights, v).reshape(b, s, h, v.shape[-1])


def causal_attention(
    q: Float[Array, "B S H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    mask: Bool[Array, "B 1 S S"],
    *,
    block: int = 0,
) -> Float[Array, "B S H K"]:
    """Causal `attention`, `block` queries at a time (0 = all at once), equal up to rounding.

    A block leaves out the keys after its last query, and keeps nothing but its inputs for the
    backward pass: about half the products, and no S x S array is ever held.
    """
    length = q.shape[1]
    if not block or length <= block:
        return attention(q, k, v, mask)
    parts = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        seen = mask[:, :, start:stop, :stop]
        parts.append(jax.checkpoint(attention)(q[:, start:stop], k[:, :stop], v[:, :stop], seen))
    return jnp.concatenate(parts, axis=1)


def causal_segment_mask(
    segment_ids: Int[Array, "B S"],
    dialog_ids: Int[Array, "B S"] | None = None,
    positions: Int[Array, "B S"] | None = None,
    *,
    sliding_window: int | None = None,
) -> Bool[Array, "B 1 S S"]:
    """Each position sees the earlier positions of its own segment, itself included.

    Args:
      segment_ids: 0 marks padding, which sees only padding and is seen by nothing else.
      dialog_ids: inside a segment, 0 is seen by all that follows and any other number only by its
        own; None means 0 everywhere.
      positions: what a sliding window counts in; None means places in the row.
      sliding_window: how many positions back a query sees, itself included.
    """
    place = jnp.arange(segment_ids.shape[1])
    seen = (place[:, None] >= place[None, :])[None]
    seen = seen & (segment_ids[:, :, None] == segment_ids[:, None, :])
    if dialog_ids is not None:
        key = dialog_ids[:, None, :]
        seen &= (key == 0) | (key == dialog_ids[:, :, None])
    if sliding_window is not None:
        at = place[None] if positions is None else positions
        seen &= at[:, :, None] - at[:, None, :] < sliding_window
    return seen[:, None]
