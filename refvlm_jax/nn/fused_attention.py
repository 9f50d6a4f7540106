"""Causal attention by the kernels of an accelerator; `nn.attention` is what they must equal.

`cudnn` is cuDNN's flash attention on NVIDIA GPUs, `splash` the Pallas kernel of JAX for TPUs. Neither
holds the scores of all pairs. Which rows each can serve is checked with the configuration
(`config.check`).
"""

from functools import partial
from typing import Literal

import jax
from jaxtyping import Array, Bool, Float, Int

from refvlm_jax.mesh.rules import on_shards

Queries = Float[Array, "B S H K"]
Keys = Float[Array, "B S G K"]


@jax.named_scope("attention")
def cudnn_attention(
    q: Queries,
    k: Keys,
    v: Keys,
    mask: Bool[Array, "B 1 S S"],
    *,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Queries:
    """`attention` by cuDNN; bfloat16 or float16 only.

    Args:
      mask: any; it reaches the kernel as a bias.
      implementation: `xla` runs the same call anywhere, for tests.
    """
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=implementation)


@jax.named_scope("attention")
def splash_attention(
    q: Queries,
    k: Keys,
    v: Keys,
    segment_ids: Int[Array, "B S"],
    *,
    sliding_window: int | None = None,
    interpret: bool = False,
) -> Queries:
    """Causal attention inside segments, on TPUs; blocks of pairs that see nothing are skipped.

    Under a mesh every device runs the kernel on its rows and heads.

    Args:
      segment_ids: 0 is padding, which sees padding.
      interpret: run the kernel's steps anywhere, for tests.
    """
    from refvlm_jax.nn.splash import attend  # importing Pallas takes half a second

    run = partial(attend, sliding_window=sliding_window, interpret=interpret)
    heads = ("batch", None, "act_heads", None)
    return on_shards(run, (heads, heads, heads, ("batch", None)), heads)(q, k, v, segment_ids)
