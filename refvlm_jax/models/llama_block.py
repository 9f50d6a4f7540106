"""One block of the Llama decoder: grouped-query attention with rotary positions, RMSNorm, SwiGLU.

Shape legend: `B` rows, `S` positions, `D` width, `H` heads, `G` key heads, `K` head dim.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from refvlm_jax.config.model import LlamaConfig
from refvlm_jax.mesh import constrain
from refvlm_jax.models.edits import Site
from refvlm_jax.nn.norm import RMSNorm
from refvlm_jax.nn.projection import Projection
from refvlm_jax.nn.rotary import Rotation, rotate

Hidden = Float[Array, "B S D"]
Queries = Float[Array, "B S H K"]
Keys = Float[Array, "B S G K"]
Attend = Callable[[Queries, Keys, Keys], tuple[Queries, Any]]
"""(q, k, v) -> (attention result, anything to hand out: the keys and values to cache)."""
Hook = Callable[[Site, Hidden], Hidden]
"""Sees, and may change, the activations at the named sites of the block."""


class Attention(nnx.Module):
    """The projections of grouped-query self-attention."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        d, h, g, k = config.width, config.heads, config.kv_heads, config.head_dim
        axes, kv_axes = ("embed", "heads", "head_dim"), ("embed", "kv_heads", "head_dim")
        self.q = _projection("q", (d,), (h, k), axes, config, rngs)
        self.k = _projection("k", (d,), (g, k), kv_axes, config, rngs)
        self.v = _projection("v", (d,), (g, k), kv_axes, config, rngs)
        out_axes = ("heads", "head_dim", "embed")
        self.o = _projection("o", (h, k), (d,), out_axes, config, rngs, residual=True)

    def qkv(self, x: Hidden, rotary: Rotation) -> tuple[Queries, Keys, Keys]:
        """Rotated queries and keys, and values."""
        q = constrain(self.q(x), "batch", "length", "act_heads", None)
        return rotate(q, rotary), rotate(self.k(x), rotary), self.v(x)


class FeedForward(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        d, f = config.width, config.mlp_dim
        self.gate = _projection("gate", (d,), (f,), ("embed", "mlp"), config, rngs)
        self.up = _projection("up", (d,), (f,), ("embed", "mlp"), config, rngs)
        self.down = _projection("down", (f,), (d,), ("mlp", "embed"), config, rngs, residual=True)

    def __call__(self, x: Hidden) -> Hidden:
        """Applies the block."""
        inner = jax.nn.silu(self.gate(x)) * self.up(x)
        return self.down(constrain(inner, "batch", "length", "act_mlp"))


class Block(nnx.Module):
    """Pre-norm decoder block."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        self.attn_norm = RMSNorm(config.width, rngs, eps=config.norm_eps)
        self.attn = Attention(config, rngs)
        self.mlp_norm = RMSNorm(config.width, rngs, eps=config.norm_eps)
        self.mlp = FeedForward(config, rngs)

    def __call__(
        self,
        x: Hidden,
        rotary: Rotation,
        attend: Attend,
        hook: Hook = lambda site, x: x,
    ) -> tuple[Hidden, Any]:
        """Returns the block's output and whatever `attend` returns beside the attention result."""
        x = hook("block_in", _pinned(x))
        with jax.named_scope("attn"):
            mixed, extra = attend(*self.attn.qkv(_pinned(self.attn_norm(x)), rotary))
            x = _pinned(x + hook("attn_out", self.attn.o(mixed)))
        with jax.named_scope("mlp"):
            x = x + hook("ffn_out", self.mlp(_pinned(self.mlp_norm(x))))
        return _pinned(x), extra


def _pinned(x: Hidden) -> Hidden:
    # Left alone, layouts of weights and pictures spread to the residual stream and its gradient.
    return constrain(x, "batch", "length", "act_embed")


def _projection(
    name: str,
    in_shape: tuple[int, ...],
    out_shape: tuple[int, ...],
    axes: tuple[str, ...],
    config: LlamaConfig,
    rngs: nnx.Rngs,
    *,
    residual: bool = False,
) -> Projection:
    """The projection `name`, with LoRA where the configuration asks for it.

    The two that write to the residual stream start 1 / sqrt(2 L) smaller, so that its variance does
    not grow with the depth.
    """
    lora = config.lora if config.lora is not None and name in config.lora.targets else None
    scale = 0.5 / config.layers if residual else 1.0
    return Projection(in_shape, out_shape, axes, rngs, scale=scale, lora=lora)
