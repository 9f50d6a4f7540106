"""DETR decoder: post-norm transformer layers that read an image memory (arXiv 2005.12872).

Shape legend: `B` pictures, `Q` queries, `S` memory tokens, `d` decoder width.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from refvlm_jax.nn.attention import attention
from refvlm_jax.nn.linear import Linear
from refvlm_jax.nn.norm import LayerNorm
from refvlm_jax.nn.stack import Stack

Queries = Float[Array, "B Q d"]


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Inverted dropout; identity without a key."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def project_queries(
    projection: Linear, queries: Float[Array, "B Q D"], valid: Bool[Array, "B Q"], empty: str
) -> Queries:
    """Queries at the decoder's width.

    Args:
      empty: what the slots that are not `valid` hold. `bias`: zero queries, projected. `zero`: zeros,
        as the reference pads what its adapter hands on.
    """
    x = projection(queries)
    return jnp.where(valid[..., None], x, 0) if empty == "zero" else x


class CrossAttention(nnx.Module):
    """Multi-head attention with separate position codes for queries and keys."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.q, self.k, self.v, self.out = (Linear(width, width, rngs) for _ in range(4))

    def __call__(
        self,
        q: Queries,
        k: Float[Array, "B S d"],
        v: Float[Array, "B S d"],
        mask: Bool[Array, "B 1 Q S"] | None = None,
    ) -> Queries:
        """Attends from q to (k, v); position codes are already added."""
        split = lambda x: x.reshape(*x.shape[:2], self.heads, -1)  # noqa: E731
        mixed = attention(split(self.q(q)), split(self.k(k)), split(self.v(v)), mask)
        return self.out(mixed.reshape(q.shape))


class DetrLayer(nnx.Module):
    """Self-attention, cross-attention, feed-forward; a norm after each residual."""

    def __init__(self, width: int, heads: int, mlp_dim: int, rngs: nnx.Rngs):
        self.self_attn = CrossAttention(width, heads, rngs)
        self.cross_attn = CrossAttention(width, heads, rngs)
        self.fc1 = Linear(width, mlp_dim, rngs)
        self.fc2 = Linear(mlp_dim, width, rngs)
        self.norm1, self.norm2, self.norm3 = (LayerNorm(width, rngs) for _ in range(3))

    def __call__(
        self,
        x: Queries,
        query_pos: Float[Array, "*B Q d"],
        memory: Float[Array, "B S d"],
        memory_key: Float[Array, "B S d"],
        mask: Bool[Array, "B 1 q Q"] | None,
        rate: float,
        key: Array | None,
    ) -> Queries:
        """One layer; `memory_key` is the memory with its position code."""
        keys = jax.random.split(key, 3) if key is not None else (None,) * 3
        placed = x + query_pos
        x = self.norm1(x + dropout(self.self_attn(placed, placed, x, mask), rate, keys[0]))
        found = self.cross_attn(x + query_pos, memory_key, memory)
        x = self.norm2(x + dropout(found, rate, keys[1]))
        return self.norm3(x + dropout(self.fc2(jax.nn.relu(self.fc1(x))), rate, keys[2]))


class DetrDecoder(nnx.Module):
    """A scanned stack of layers and a final norm."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        mlp_dim: int,
        rngs: nnx.Rngs,
        *,
        rate: float = 0.0,
        remat: str = "none",
    ):
        """`remat` is what the backward pass recomputes (`nn.stack.Stack.scan`)."""
        self.rate, self.remat = rate, remat
        self.layers = Stack(lambda k: DetrLayer(width, heads, mlp_dim, k), layers, rngs)
        self.norm = LayerNorm(width, rngs)

    def __call__(
        self,
        x: Queries,
        query_pos: Float[Array, "*B Q d"],
        memory: Float[Array, "B S d"],
        memory_pos: Array,
        seen: Bool[Array, "B q Q"] | None = None,
        dropout_key: Array | None = None,
    ) -> Queries:
        """Decodes the queries; `seen` says which (last axis) each one attends to, None for all."""
        memory_key = memory + jnp.asarray(memory_pos, memory.dtype)
        mask = None if seen is None else seen[:, None]
        query_pos = query_pos.astype(x.dtype)
        count = self.layers.layers
        keys = None if dropout_key is None else jax.random.split(dropout_key, count)

        def body(layer: DetrLayer, x: Queries, key: Array | None) -> tuple[Queries, None]:
            return layer(x, query_pos, memory, memory_key, mask, self.rate, key), None

        x, _ = self.layers.scan(body, x, keys, remat=self.remat)
        return self.norm(x)
