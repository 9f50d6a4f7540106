"""The Pallas kernel for causal attention on TPUs, fed with rows of segments."""

import math

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Int

from refvlm_jax.nn.fused_attention import Keys, Queries


def attend(
    q: Queries,
    k: Keys,
    v: Keys,
    segment_ids: Int[Array, "B S"],
    *,
    sliding_window: int | None,
    interpret: bool,
) -> Queries:
    """See `nn.fused_attention.splash_attention`; arrays of one device."""
    rows, length, heads, width = q.shape
    groups = k.shape[2]
    shape = (length, length)
    if sliding_window is None:
        seen: masks.Mask = masks.CausalMask(shape)
    else:
        # A segment is contiguous: places differ by what positions differ.
        seen = masks.LocalMask(shape, (sliding_window - 1, 0), 0)
    # Keys of a group serve its query heads as in multi-query attention.
    one_group = kernel.make_splash_mqa_single_device(
        masks.MultiHeadMask([seen] * (heads // groups)),
        block_sizes=_blocks(length),
        interpret=interpret,
    )
    by_group = jax.vmap(one_group, in_axes=(0, 0, 0, None))
    grouped = (q * width**-0.5).reshape(rows, length, groups, heads // groups, width)
    mixed = jax.vmap(by_group)(
        grouped.transpose(0, 2, 3, 1, 4),
        k.transpose(0, 2, 1, 3),
        v.transpose(0, 2, 1, 3),
        kernel.SegmentIds(segment_ids, segment_ids),
    )
    return mixed.transpose(0, 3, 1, 2, 4).reshape(q.shape)


def _blocks(length: int) -> kernel.BlockSizes:
    """Square blocks of up to 512 positions, forward and backward."""
    size = math.gcd(length, 512)
    return kernel.BlockSizes(
        block_q=size, block_kv=size, block_kv_compute=size,
        block_q_dkv=size, block_kv_dkv=size, block_kv_dkv_compute=size,
        block_q_dq=size, block_kv_dq=size,
    )  # fmt: skip
