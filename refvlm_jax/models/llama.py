"""Llama decoder: grouped-query attention, rotary positions, RMSNorm, SwiGLU; one scanned stack.

Follows Hugging Face's LlamaForCausalLM number for number (Vicuna, Llama 3; Mistral through
`sliding_window`). Shape legend: `B` rows, `S` positions, `T` cache slots, `D` width, `H` heads, `G` key
heads, `K` head dim, `L` layers, `V` vocabulary.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from refvlm_jax.config.model import LlamaConfig
from refvlm_jax.mesh import constrain
from refvlm_jax.models.edits import Edit, Editor
from refvlm_jax.nn.attention import attention, causal_segment_mask
from refvlm_jax.nn.lora import Lora
from refvlm_jax.nn.norm import RMSNorm
from refvlm_jax.nn.param import param
from refvlm_jax.nn.rotary import rotary_angles, rotate
from refvlm_jax.nn.stack import Stack

Hidden = Float[Array, "B S D"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer; rows of different prompt length share slots."""

    k: Float[Array, "L B T G K"]
    v: Float[Array, "L B T G K"]
    positions: Int[Array, "B T"]
    """Rotary position of each slot."""
    valid: Bool[Array, "B T"]


@dataclasses.dataclass(frozen=True)
class LlamaOutput:
    """Result of a forward pass."""

    hidden: Hidden
    """After the final norm."""
    taps: dict[str, Hidden]


class Projection(nnx.Module):
    """A bias-free linear map between `in_shape` and `out_shape`, optionally with LoRA."""

    def __init__(
        self,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        axes: tuple[str | None, ...],
        rngs: nnx.Rngs,
        *,
        scale: float = 1.0,
        lora: Lora | None = None,
    ):
        rank_in, rank_out = len(in_shape), len(out_shape)
        init = jax.nn.initializers.variance_scaling(
            scale,
            "fan_in",
            "normal",
            in_axis=tuple(range(rank_in)),
            out_axis=tuple(range(rank_in, rank_in + rank_out)),
        )
        self.in_rank, self.out_shape = rank_in, out_shape
        self.kernel = param(rngs, init, (*in_shape, *out_shape), axes)
        self.lora = lora

    def __call__(self, x: Array) -> Array:
        """Contracts the trailing axes of x with the kernel."""
        y = jnp.tensordot(x, self.kernel[...].astype(x.dtype), axes=self.in_rank)
        if self.lora is not None:
            flat = x.reshape(*x.shape[: x.ndim - self.in_rank], -1)
            y = y + self.lora(flat).reshape(y.shape)
        return y


class Attention(nnx.Module):
    """Grouped-query self-attention with rotary positions."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        d, h, g, k = config.width, config.heads, config.kv_heads, config.head_dim
        self.config = config
        self.q = Projection(
            (d,),
            (h, k),
            ("embed", "heads", "head_dim"),
            rngs,
            lora=_lora(config, "q", d, h * k, rngs),
        )
        self.k = Projection(
            (d,),
            (g, k),
            ("embed", "kv_heads", "head_dim"),
            rngs,
            lora=_lora(config, "k", d, g * k, rngs),
        )
        self.v = Projection(
            (d,),
            (g, k),
            ("embed", "kv_heads", "head_dim"),
            rngs,
            lora=_lora(config, "v", d, g * k, rngs),
        )
        self.o = Projection(
            (h, k),
            (d,),
            ("heads", "head_dim", "embed"),
            rngs,
            scale=0.5 / config.layers,
            lora=_lora(config, "o", h * k, d, rngs),
        )

    def qkv(self, x: Hidden, angles: Array) -> tuple[Array, Array, Array]:
        """Rotated queries and keys, and values."""
        q = constrain(self.q(x), "batch", "length", "act_heads", None)
        return rotate(q, angles), rotate(self.k(x), angles), self.v(x)


class FeedForward(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        d, f = config.width, config.mlp_dim
        self.gate = Projection(
            (d,), (f,), ("embed", "mlp"), rngs, lora=_lora(config, "gate", d, f, rngs)
        )
        self.up = Projection(
            (d,), (f,), ("embed", "mlp"), rngs, lora=_lora(config, "up", d, f, rngs)
        )
        self.down = Projection(
            (f,),
            (d,),
            ("mlp", "embed"),
            rngs,
            scale=0.5 / config.layers,
            lora=_lora(config, "down", f, d, rngs),
        )

    def __call__(self, x: Hidden) -> Hidden:
        """Applies the block."""
        inner = jax.nn.silu(self.gate(x)) * self.up(x)
        return self.down(constrain(inner, "batch", "length", "act_mlp"))


def _lora(
    config: LlamaConfig, name: str, in_features: int, out_features: int, rngs: nnx.Rngs
) -> Lora | None:
    if config.lora is None or name not in config.lora.targets:
        return None
    return Lora(in_features, out_features, config.lora, rngs)


Attend = Callable[[Array, Array, Array], tuple[Array, object]]
Hook = Callable[[str, Hidden], Hidden]


class Block(nnx.Module):
    """Pre-norm decoder block."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        self.attn_norm = RMSNorm(config.width, rngs, eps=config.norm_eps)
        self.attn = Attention(config, rngs)
        self.mlp_norm = RMSNorm(config.width, rngs, eps=config.norm_eps)
        self.mlp = FeedForward(config, rngs)

    def __call__(
        self, x: Hidden, angles: Array, attend: Attend, hook: Hook = lambda site, x: x
    ) -> tuple[Hidden, object]:
        """Returns the block's output and whatever `attend` returns beside the attention result."""
        x = hook("block_in", x)
        with jax.named_scope("attn"):
            mixed, extra = attend(*self.attn.qkv(self.attn_norm(x), angles))
            x = x + hook("attn_out", self.attn.o(mixed))
        with jax.named_scope("mlp"):
            x = x + hook("ffn_out", self.mlp(self.mlp_norm(x)))
        return constrain(x, "batch", "length", "act_embed"), extra


class Llama(nnx.Module):
    """Token embedding, scanned blocks, final norm, vocabulary projection."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        self.config = config
        normal = jax.nn.initializers.normal
        shape = (config.vocab_size, config.width)
        self.embedding = param(rngs, normal(config.embedding_init), shape, ("vocab", "embed"))
        self.blocks = Stack(lambda keys: Block(config, keys), config.layers, rngs)
        self.norm = RMSNorm(config.width, rngs, eps=config.norm_eps)
        self.lm_head = (
            None
            if config.tie_embeddings
            else param(rngs, normal(0.02), shape[::-1], ("embed", "vocab"))
        )

    def embed(self, tokens: Int[Array, "B S"]) -> Hidden:
        """Embeddings of token ids, in the storage dtype."""
        return jnp.take(self.embedding[...], tokens, axis=0)

    def logits(self, hidden: Hidden) -> Float[Array, "B S V"]:
        """Vocabulary logits in fp32."""
        head = self.embedding[...].T if self.lm_head is None else self.lm_head[...]
        logits = jnp.einsum(
            "bsd,dv->bsv", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        return constrain(logits, "batch", "length", "act_vocab")

    def __call__(
        self,
        embeddings: Hidden,
        positions: Int[Array, "B S"],
        segment_ids: Int[Array, "B S"],
        *,
        edits: Sequence[Edit] = (),
    ) -> LlamaOutput:
        """Runs the stack over whole sequences; packed segments do not see each other."""
        mask = causal_segment_mask(segment_ids, sliding_window=self.config.sliding_window)
        angles = self._angles(positions)

        def attend(q: Array, k: Array, v: Array) -> tuple[Array, None]:
            return attention(q, k, v, mask), None

        editor = Editor(edits, self.config.layers)
        x = editor("input_emb", None, embeddings)
        start = 0
        for layer in (*editor.layers, self.config.layers):
            if start < layer:
                x = self._scan(x, angles, attend, start, layer)
            if layer < self.config.layers:
                x = self._edited(x, angles, attend, layer, editor)
            start = layer + 1
        hidden = editor("last_hidden", None, self.norm(x))
        return LlamaOutput(hidden, editor.taps)

    def _angles(self, positions: Int[Array, "B S"]) -> Array:
        return rotary_angles(positions, self.config.head_dim, self.config.rope_theta)

    def _scan(self, x: Hidden, angles: Array, attend: Attend, start: int, stop: int) -> Hidden:
        def body(block: Block, x: Hidden, _: None) -> tuple[Hidden, None]:
            return block(x, angles, attend)[0], None

        whole = (start, stop) == (0, self.config.layers)
        limits = {} if whole else {"start": start, "stop": stop}
        return self.blocks.scan(body, x, remat=self.config.remat, **limits)[0]

    def _edited(
        self, x: Hidden, angles: Array, attend: Attend, layer: int, editor: Editor
    ) -> Hidden:
        return self.blocks.one(layer)(x, angles, attend, lambda s, v: editor(s, layer, v))[0]

    def init_cache(self, rows: int, length: int, dtype: jnp.dtype) -> KVCache:
        """An empty cache of `length` slots."""
        c = self.config
        shape = (c.layers, rows, length, c.kv_heads, c.head_dim)
        return KVCache(
            k=jnp.zeros(shape, dtype),
            v=jnp.zeros(shape, dtype),
            positions=jnp.zeros((rows, length), jnp.int32),
            valid=jnp.zeros((rows, length), jnp.bool_),
        )

    def prefill(
        self,
        embeddings: Hidden,
        positions: Int[Array, "B S"],
        segment_ids: Int[Array, "B S"],
        cache: KVCache,
    ) -> tuple[Hidden, KVCache]:
        """Runs right-padded prompts and writes their keys and values to slots 0..S-1."""
        mask = causal_segment_mask(segment_ids, sliding_window=self.config.sliding_window)
        angles, size = self._angles(positions), embeddings.shape[1]

        def attend(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
            return attention(q, k, v, mask), (k, v)

        def body(block: Block, x: Hidden, _: None) -> tuple[Hidden, object]:
            return block(x, angles, attend)

        x, (keys, values) = self.blocks.scan(body, embeddings)
        cache = KVCache(
            k=cache.k.at[:, :, :size].set(keys.astype(cache.k.dtype)),
            v=cache.v.at[:, :, :size].set(values.astype(cache.v.dtype)),
            positions=cache.positions.at[:, :size].set(positions),
            valid=cache.valid.at[:, :size].set(segment_ids > 0),
        )
        return self.norm(x), cache

    def decode_step(
        self,
        embedding: Float[Array, "B 1 D"],
        positions: Int[Array, "B 1"],
        cache: KVCache,
        slot: Int[Array, ""],
    ) -> tuple[Float[Array, "B 1 D"], KVCache]:
        """Feeds one token a row, written to the same slot in every row."""
        put = jax.lax.dynamic_update_slice_in_dim
        places = put(cache.positions, positions, slot, axis=1)
        valid = put(cache.valid, jnp.ones_like(positions, jnp.bool_), slot, axis=1)
        mask, angles = valid, self._angles(positions)
        if self.config.sliding_window is not None:
            mask = valid & (positions - places < self.config.sliding_window)

        def body(block: Block, x: Hidden, kv: tuple[Array, Array]) -> tuple[Hidden, object]:
            def attend(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
                keys = put(kv[0], k.astype(kv[0].dtype), slot, axis=1)
                values = put(kv[1], v.astype(kv[1].dtype), slot, axis=1)
                return attention(q, keys, values, mask[:, None, None]), (keys, values)

            return block(x, angles, attend)

        x, (keys, values) = self.blocks.scan(body, embedding, (cache.k, cache.v))
        return self.norm(x), KVCache(keys, values, places, valid)
