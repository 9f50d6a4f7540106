"""Llama decoder: token embedding, one scanned stack of blocks, final norm, vocabulary projection.

Follows Hugging Face's LlamaForCausalLM number for number (Vicuna, Llama 3; Mistral through
`sliding_window`). Shape legend: `B` rows, `S` positions, `T` cache slots, `D` width, `H` heads,
`G` key heads, `K` head dim, `L` layers, `V` rows of the vocabulary, padding included.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from refvlm_jax.config.model import LlamaConfig
from refvlm_jax.mesh import constrain
from refvlm_jax.models.edits import Edit, Editor, Taps
from refvlm_jax.models.llama_block import Attend, Block, Hidden, Keys, Queries
from refvlm_jax.nn.attention import attention, causal_attention, causal_segment_mask
from refvlm_jax.nn.contract import contract
from refvlm_jax.nn.fused_attention import cudnn_attention, splash_attention
from refvlm_jax.nn.norm import RMSNorm
from refvlm_jax.nn.param import normal, param
from refvlm_jax.nn.rotary import Rotation, rotation
from refvlm_jax.nn.stack import Stack


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer; rows of different prompt length share slots."""

    k: Float[Array, "L B T G K"]
    v: Float[Array, "L B T G K"]
    positions: Int[Array, "B T"]
    """Rotary position of each slot."""
    valid: Bool[Array, "B T"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LlamaOutput:
    """Result of a forward pass."""

    hidden: Hidden
    """After the final norm."""
    taps: Taps


@jax.named_scope("logits")
def vocabulary_logits(
    hidden: Hidden, head: Float[Array, "D V"], vocab_size: int
) -> Float[Array, "B S V"]:
    """Scores of every token, in fp32; the least number there is past `vocab_size`."""
    hidden = constrain(hidden, "batch", "length", "act_embed")
    logits = contract(hidden, head.astype(hidden.dtype), 1, jnp.float32)
    if vocab_size < head.shape[1]:
        # Masked rather than cut off: the length must go on dividing the mesh.
        token = jnp.arange(head.shape[1]) < vocab_size
        logits = jnp.where(token, logits, jnp.finfo(jnp.float32).min)
    return constrain(logits, "batch", "length", "act_vocab")


class Llama(nnx.Module):
    """The language model."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        self.config = config
        shape = (config.vocab_rows, config.width)
        self.embedding = param(rngs, normal(config.embedding_init), shape, ("vocab", "embed"))
        self.blocks = Stack(
            lambda keys: Block(config, keys), config.layers, rngs, unroll=config.unroll_layers
        )
        self.norm = RMSNorm(config.width, rngs, eps=config.norm_eps)
        self.lm_head = (
            None
            if config.tie_embeddings
            else param(rngs, normal(0.02), shape[::-1], ("embed", "vocab"))
        )

    @jax.named_scope("embed")
    def embed(self, tokens: Int[Array, "B S"]) -> Hidden:
        """Embeddings of token ids, in the storage dtype."""
        return jnp.take(self.embedding[...], tokens, axis=0)

    def head(self) -> Float[Array, "D V"]:
        """What turns hidden states into logits, in the storage dtype."""
        return self.embedding[...].T if self.lm_head is None else self.lm_head[...]

    def logits(self, hidden: Hidden) -> Float[Array, "B S V"]:
        """Vocabulary logits in fp32."""
        return vocabulary_logits(hidden, self.head(), self.config.vocab_size)

    def __call__(
        self,
        embeddings: Hidden,
        positions: Int[Array, "B S"],
        segment_ids: Int[Array, "B S"],
        dialog_ids: Int[Array, "B S"] | None = None,
        *,
        edits: Sequence[Edit] | None = None,
    ) -> LlamaOutput:
        """Runs the stack over whole sequences; packed segments do not see each other.

        Args:
          dialog_ids: see `refvlm_jax.batch.Batch.dialog_ids`.
          edits: activations to read or change on the way (see `refvlm_jax.models.edits`).
        """
        mix = self._attention(positions, segment_ids, dialog_ids)
        rotary, editor = self._rotation(positions), Editor(edits or (), self.config.layers)
        taps: Taps = {}

        def attend(q: Queries, k: Keys, v: Keys) -> tuple[Queries, None]:
            return mix(q, k, v), None

        x = editor.apply("input_emb", None, embeddings, taps)
        for start, stop in editor.runs():
            body = _edited_body(editor, start, rotary, attend)
            x, seen = self.blocks.scan(body, x, remat=self.config.remat, start=start, stop=stop)
            taps |= {name: value[0] for name, value in seen.items()}
        hidden = editor.apply("last_hidden", None, self.norm(x), taps)
        return LlamaOutput(hidden, taps)

    def _attention(
        self,
        positions: Int[Array, "B S"],
        segment_ids: Int[Array, "B S"],
        dialog_ids: Int[Array, "B S"] | None,
    ) -> Callable[[Queries, Keys, Keys], Queries]:
        """Attention over whole rows, by the configured kernel."""
        c = self.config
        if c.attention == "splash":
            # `config.check` has seen to it that a row holds no dialogues side by side.
            return partial(
                splash_attention, segment_ids=segment_ids, sliding_window=c.sliding_window
            )
        window = c.sliding_window
        mask = causal_segment_mask(segment_ids, dialog_ids, positions, sliding_window=window)
        if c.attention == "cudnn":
            return partial(cudnn_attention, mask=mask)
        return partial(causal_attention, mask=mask, block=c.attention_block)

    def _rotation(self, positions: Int[Array, "B S"]) -> Rotation:
        return rotation(positions, self.config.head_dim, self.config.rope_theta)

    def init_cache(self, batch: int, length: int, dtype: jnp.dtype) -> KVCache:
        """An empty cache of `length` slots for `batch` rows."""
        c = self.config
        shape = (c.layers, batch, length, c.kv_heads, c.head_dim)
        return KVCache(
            k=jnp.zeros(shape, dtype),
            v=jnp.zeros(shape, dtype),
            positions=jnp.zeros((batch, length), jnp.int32),
            valid=jnp.zeros((batch, length), jnp.bool_),
        )

    @jax.named_scope("prefill")
    def prefill(
        self,
        embeddings: Hidden,
        positions: Int[Array, "B S"],
        segment_ids: Int[Array, "B S"],
        cache: KVCache,
    ) -> tuple[Hidden, KVCache]:
        """Runs right-padded prompts, one segment a row, and fills the cache slots 0..S-1."""
        size, slots = embeddings.shape[1], cache.valid.shape[1]
        if size > slots:
            raise ValueError(f"prompts of {size} positions do not fit a cache of {slots} slots")
        mix = self._attention(positions, segment_ids, None)
        rotary = self._rotation(positions)

        def attend(q: Queries, k: Keys, v: Keys) -> tuple[Queries, tuple[Keys, Keys]]:
            return mix(q, k, v), (
                k.astype(cache.k.dtype),
                v.astype(cache.v.dtype),
            )

        def body(block: Block, x: Hidden, _: None) -> tuple[Hidden, tuple[Keys, Keys]]:
            return block(x, rotary, attend)

        x, (keys, values) = self.blocks.scan(body, embeddings)
        cache = KVCache(
            k=cache.k.at[:, :, :size].set(keys),
            v=cache.v.at[:, :, :size].set(values),
            positions=cache.positions.at[:, :size].set(positions),
            valid=cache.valid.at[:, :size].set(segment_ids > 0),
        )
        return self.norm(x), cache

    @jax.named_scope("decode_step")
    def decode_step(
        self,
        embedding: Float[Array, "B 1 D"],
        positions: Int[Array, "B 1"],
        cache: KVCache,
        slot: Int[Array, ""],
    ) -> tuple[Float[Array, "B 1 D"], KVCache]:
        """Feeds one token a row, written to the same slot in every row.

        `slot` is traced and cannot be checked: past the end it would overwrite the last slot.
        """
        put = jax.lax.dynamic_update_slice_in_dim
        places = put(cache.positions, positions, slot, axis=1)
        valid = put(cache.valid, jnp.ones_like(positions, jnp.bool_), slot, axis=1)
        mask, rotary = valid, self._rotation(positions)
        if self.config.sliding_window is not None:
            mask = valid & (positions - places < self.config.sliding_window)

        def body(
            block: Block, carry: tuple[Hidden, Array, Array], layer: Int[Array, ""]
        ) -> tuple[tuple[Hidden, Array, Array], None]:
            # The whole cache travels in the carry: as a scanned input and output it would be
            # copied, and held twice, at every token.
            x, keys, values = carry

            def attend(q: Queries, k: Keys, v: Keys) -> tuple[Queries, tuple[Array, Array]]:
                stored_k, stored_v = _write(keys, k, layer, slot), _write(values, v, layer, slot)
                mixed = attention(q, stored_k[layer], stored_v[layer], mask[:, None, None])
                return mixed, (stored_k, stored_v)

            x, (keys, values) = block(x, rotary, attend)
            return (x, keys, values), None

        start = (embedding, cache.k, cache.v)
        layers = jnp.arange(self.config.layers)
        (x, keys, values), _ = self.blocks.scan(body, start, layers)
        return self.norm(x), KVCache(keys, values, places, valid)


def _edited_body(
    editor: Editor, layer: int, rotary: Rotation, attend: Attend
) -> Callable[[Block, Hidden, None], tuple[Hidden, Taps]]:
    """Scan body of a run of layers that starts at `layer`; only a run of one has edits."""

    def body(block: Block, x: Hidden, _: None) -> tuple[Hidden, Taps]:
        # Taps leave as results: a side effect would leak tracers out of scan and remat.
        seen: Taps = {}
        x, _ = block(x, rotary, attend, lambda site, v: editor.apply(site, layer, v, seen))
        return x, seen

    return body


def _write(
    cache: Float[Array, "L B T G K"],
    new: Float[Array, "B 1 G K"],
    layer: Int[Array, ""],
    slot: Int[Array, ""],
) -> Float[Array, "L B T G K"]:
    """`cache` with one slot of one layer replaced."""
    zero = jnp.zeros((), jnp.int32)
    place = (layer.astype(jnp.int32), zero, jnp.asarray(slot, jnp.int32), zero, zero)
    return jax.lax.dynamic_update_slice(cache, new.astype(cache.dtype)[None], place)
