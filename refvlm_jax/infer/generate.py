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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """A batch of prompts that was read: what the first generated token follows from."""

    features: VisionFeatures
    hidden: Float[Array, "B S D"]
    last: Float[Array, "B D"]
    """State at the end of each prompt; it predicts the first token."""
    lengths: Int[Array, "B"]
    """Positions of each prompt."""
    cache: KVCache


def read_prompt(model: RefVLM, batch: Batch, max_new: int) -> Prompt:
    """Runs right-padded prompt rows and makes room for `max_new` tokens behind them."""
    features = model.encode_images(batch.images)
    embeddings = model.embed(batch, features)
    rows, size = batch.tokens.shape
    cache = model.llama.init_cache(rows, size + max_new, model.dtype)
    hidden, cache = model.llama.prefill(embeddings, batch.positions, batch.segment_ids, cache)
    lengths = (batch.segment_ids > 0).sum(axis=1)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return Prompt(features=features, hidden=hidden, last=last, lengths=lengths, cache=cache)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class NextToken:
    """One generated token a row, and where it leaves the model."""

    token: Int[Array, "B"]
    log_prob: Float[Array, "B"]
    state: Float[Array, "B D"]
    """State at the token; it predicts the next one."""
    cache: KVCache


def next_token(
    model: RefVLM,
    state: Float[Array, "B D"],
    position: Int[Array, "B"],
    slot: Int[Array, ""],
    cache: KVCache,
    done: Bool[Array, "B"],
    pad_id: int,
) -> NextToken:
    """Chooses the most probable token and feeds it; rows that are `done` get `pad_id`.

    Args:
      state: what the token is predicted from.
      position: rotary position of the token.
      slot: of the cache that the token takes in every row.
    """
    log_probs = jax.nn.log_softmax(model.llama.logits(state[:, None])[:, 0], axis=-1)
    token = jnp.where(done, pad_id, log_probs.argmax(axis=-1)).astype(jnp.int32)
    log_prob = jnp.where(done, 0.0, log_probs.max(axis=-1))
    embedding = model.llama.embed(token[:, None]).astype(model.dtype)
    state, cache = model.llama.decode_step(embedding, position[:, None], cache, slot)
    return NextToken(token=token, log_prob=log_prob, state=state[:, 0], cache=cache)


def generate(
    model: RefVLM, batch: Batch, *, max_new: int, eos_id: int, pad_id: int = 0
) -> Generation:
    """Answers a batch of right-padded prompt rows greedily.

    Rows of different prompt length share the cache: row b's token t has rotary position len_b + t
    but cache slot S + t, and padding slots are never attended to.
    """
    read = read_prompt(model, batch, max_new)
    rows, size = batch.tokens.shape

    def decode(loop: _Loop) -> _Loop:
        position, slot = read.lengths + loop.t, size + loop.t
        found = next_token(model, loop.state, position, slot, loop.cache, loop.done, pad_id)
        return _Loop(
            t=loop.t + 1,
            state=found.state,
            cache=found.cache,
            tokens=loop.tokens.at[:, loop.t].set(found.token),
            log_prob=loop.log_prob.at[:, loop.t].set(found.log_prob),
            hidden=loop.hidden.at[:, loop.t].set(found.state),
            done=loop.done | (found.token == eos_id),
        )

    start = _Loop(
        t=jnp.int32(0),
        state=read.last,
        cache=read.cache,
        tokens=jnp.full((rows, max_new), pad_id, jnp.int32),
        log_prob=jnp.zeros((rows, max_new), jnp.float32),
        hidden=jnp.zeros((rows, max_new, read.last.shape[-1]), read.last.dtype),
        # Dummy rows that only fill up the last batch are finished before they start.
        done=batch.sample_id < 0,
    )
    end = jax.lax.while_loop(lambda s: (s.t < max_new) & ~s.done.all(), decode, start)
    return Generation(
        tokens=end.tokens,
        log_prob=end.log_prob,
        hidden=end.hidden,
        finished=end.done,
        features=read.features,
        prompt_end=read.last if model.adapter is not None else None,
        patches=model.patch_states(read.hidden, batch),
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
