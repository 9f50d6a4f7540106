"""Scaled dot-product attention with grouped keys, and the masks of packed sequences."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

RECOMPUTED = "rematted_computation"
"""Part of the name stack that JAX gives to what the backward pass computes again."""


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
    scores = _masked_scores(q, k, mask, scale)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return _ungrouped(jnp.einsum("bghst,btgw->bghsw", weights, v))


def causal_attention(
    q: Float[Array, "B S H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    mask: Bool[Array, "B 1 S S"],
    *,
    block: int = 0,
) -> Float[Array, "B S H K"]:
    """Causal `attention`, `block` queries at a time (0 = all at once), equal up to rounding.

    A block leaves out the keys after its last query, and keeps no scores for the backward pass:
    about half the products, and no S x S array is ever held.
    """
    length = q.shape[1]
    if not block or length <= block:
        return attention(q, k, v, mask)
    parts = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        seen = mask[:, :, start:stop, :stop]
        parts.append(_block(q[:, start:stop], k[:, :stop], v[:, :stop], seen))
    return jnp.concatenate(parts, axis=1)


@jax.custom_vjp
def _block(
    q: Float[Array, "B S H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G W"],
    mask: Bool[Array, "B 1 S T"],
) -> Float[Array, "B S H W"]:
    """`attention` that keeps its result and two numbers a query for the backward pass.

    Weights are made again there in one pass over the scores, without a second search for the largest
    and a second sum, and what the softmax takes off their gradient is summed over the width of a head
    instead of over all keys (arXiv 2205.14135, appendix B.2).
    """
    return _block_forward(q, k, v, mask)[0]


_Saved = tuple[Array, Array, Array, Array, Array, Array, Array]


@jax.named_scope("attention")
def _block_forward(q: Array, k: Array, v: Array, mask: Array) -> tuple[Array, _Saved]:
    scores = _masked_scores(q, k, mask)
    top = scores.max(axis=-1, keepdims=True)
    raw = jnp.exp(scores - top)
    total = raw.sum(axis=-1, keepdims=True)
    mixed = jnp.einsum(
        "bghst,btgw->bghsw", raw.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    out = _ungrouped(mixed / total).astype(v.dtype)
    return out, (q, k, v, mask, out, top, total)


def _block_backward(saved: _Saved, to_out: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, mask, out, top, total = saved
    groups, scale = k.shape[2], q.shape[-1] ** -0.5
    with jax.named_scope("attention"):
        with jax.named_scope(RECOMPUTED):
            weights = jnp.exp(_masked_scores(q, k, mask) - top) / total
        pull = (to_out.astype(jnp.float32) * out).sum(axis=-1, keepdims=True)
        g = _grouped(to_out, groups)
        to_weights = jnp.einsum("bghsw,btgw->bghst", g, v, preferred_element_type=jnp.float32)
        to_scores = (weights * (to_weights - _grouped(pull, groups)) * scale).astype(q.dtype)
        to_v = jnp.einsum("bghst,bghsw->btgw", weights.astype(v.dtype), g)
        to_k = jnp.einsum("bghst,bghsk->btgk", to_scores, _grouped(q, groups))
        to_q = _ungrouped(jnp.einsum("bghst,btgk->bghsk", to_scores, k))
    return to_q, to_k, to_v, None


_block.defvjp(_block_forward, _block_backward)


def _masked_scores(
    q: Array, k: Array, mask: Array | None, scale: float | None = None
) -> Float[Array, "B G h S T"]:
    """Scaled scores in fp32, the smallest number where the mask is False."""
    grouped, scale = _grouped(q, k.shape[2]), q.shape[-1] ** -0.5 if scale is None else scale
    # Asked of the product itself: a bf16 score cast afterwards would already be rounded.
    scores = jnp.einsum("bghsk,btgk->bghst", grouped, k, preferred_element_type=jnp.float32) * scale
    if mask is None:
        return scores
    return jnp.where(mask[:, :, None], scores, jnp.finfo(jnp.float32).min)


def _grouped(x: Float[Array, "B S H K"], groups: int) -> Float[Array, "B G h S K"]:
    """Heads by the key head that they share."""
    b, s, h, width = x.shape
    return jnp.moveaxis(x.reshape(b, s, groups, h // groups, width), 1, 3)


def _ungrouped(x: Float[Array, "B G h S K"]) -> Float[Array, "B S H K"]:
    b, groups, share, s, width = x.shape
    return jnp.moveaxis(x, 3, 1).reshape(b, s, groups * share, width)


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
