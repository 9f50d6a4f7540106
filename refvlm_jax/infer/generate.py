"""Batched greedy generation with a KV cache, keeping the state of every generated token.

The state kept for a token is the one AT its own position: exactly what a teacher-forced pass over
prompt and answer gives there, which is what the unit decoders were trained on.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from refvlm_jax.batch import Batch
from refvlm_jax.models.clip_vit import VisionFeatures
from refvlm_jax.models.llama import KVCache
from refvlm_jax.models.refvlm import RefTable, RefVLM, UnitOutputs

NO_TOKEN = -1  # stands where no generated token is


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """Generated answers of a batch; `T` is the room for new tokens."""

    tokens: Int[Array, "B T"]
    """Generated ids, `pad_id` after the end."""
    log_prob: Float[Array, "B T"]
    """Log-probability of each generated token, 0 after the end."""
    hidden: Float[Array, "B T D"]
    """Last hidden state at each generated token."""
    finished: Bool[Array, "B"]
    """The end token was produced."""
    features: VisionFeatures
    """The pictures' features, reused by the unit decoders."""
    prompt_end: Float[Array, "B D"] | None = None
    """State that predicted the first generated token; only models with an adapter keep it."""
    patches: Float[Array, "B I N D"] | None = None
    """See `RefVLM.patch_states`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Loop:
    """Carry of the decoding loop; `state` predicts token `t`."""

    t: Int[Array, ""]
    state: Float[Array, "B D"]
    cache: KVCache
    tokens: Int[Array, "B T"]
    log_prob: Float[Array, "B T"]
    hidden: Float[Array, "B T D"]
    done: Bool[Array, "B"]


def generate(
    model: RefVLM, batch: Batch, *, max_new: int, eos_id: int, pad_id: int = 0
) -> Generation:
    """Answers a batch of right-padded prompt rows greedily.

    Rows of different prompt length share the cache: row b's token t has rotary position len_b + t
    but cache slot S + t, and padding slots are never attended to.
    """
    features = model.encode_images(batch.images)
    embeddings = model.embed(batch, features)
    rows, prompt = batch.tokens.shape
    cache = model.llama.init_cache(rows, prompt + max_new, model.dtype)
    hidden, cache = model.llama.prefill(embeddings, batch.positions, batch.segment_ids, cache)
    lengths = (batch.segment_ids > 0).sum(axis=1)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]

    def decode(loop: _Loop) -> _Loop:
        log_probs = jax.nn.log_softmax(model.llama.logits(loop.state[:, None])[:, 0], axis=-1)
        best = log_probs.argmax(axis=-1)
        token = jnp.where(loop.done, pad_id, best).astype(jnp.int32)
        best_log_prob = jnp.where(loop.done, 0.0, log_probs.max(axis=-1))
        embedding = model.llama.embed(token[:, None]).astype(model.dtype)
        state, updated = model.llama.decode_step(
            embedding, (lengths + loop.t)[:, None], loop.cache, prompt + loop.t
        )
        return _Loop(
            t=loop.t + 1,
            state=state[:, 0],
            cache=updated,
            tokens=loop.tokens.at[:, loop.t].set(token),
            log_prob=loop.log_prob.at[:, loop.t].set(best_log_prob),
            hidden=loop.hidden.at[:, loop.t].set(state[:, 0]),
            done=loop.done | (token == eos_id),
        )

    start = _Loop(
        t=jnp.int32(0),
        state=last,
        cache=cache,
        tokens=jnp.full((rows, max_new), pad_id, jnp.int32),
        log_prob=jnp.zeros((rows, max_new), jnp.float32),
        hidden=jnp.zeros((rows, max_new, last.shape[-1]), last.dtype),
        # Dummy rows that only fill up the last batch are finished before they start.
        done=batch.sample_id < 0,
    )
    end = jax.lax.while_loop(lambda s: (s.t < max_new) & ~s.done.all(), decode, start)
    return Generation(
        tokens=end.tokens,
        log_prob=end.log_prob,
        hidden=end.hidden,
        finished=end.done,
        features=features,
        prompt_end=last if model.adapter is not None else None,
        patches=model.patch_states(hidden, batch),
    )


def decode_answers(
    model: RefVLM, generation: Generation, refs: RefTable, images: int
) -> UnitOutputs:
    """Runs the unit decoders on the references of generated answers.

    Args:
      refs: positions count generated tokens.
    """
    hidden, tokens = generation.hidden, generation.tokens
    if generation.prompt_end is not None:
        # An adapter reads every token where it was predicted: the first at the end of the prompt.
        hidden = jnp.concatenate([generation.prompt_end[:, None], hidden], axis=1)
        tokens = jnp.pad(tokens, ((0, 0), (1, 0)), constant_values=NO_TOKEN)
        refs = dataclasses.replace(refs, pos=refs.pos + 1)
    return model.decode_units(
        hidden, refs, generation.features, images, tokens=tokens, patches=generation.patches
    )
