"""Llama: packing, padding, cached decoding, taps and injections, births."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from refvlm_jax.config.model import LlamaConfig
from refvlm_jax.models.edits import Edit
from refvlm_jax.models.llama import Llama
from refvlm_jax.models.objective import language_loss_sum
from refvlm_jax.testing.tiny import random_batch, tiny_config, tiny_spec

BASE = LlamaConfig(
    vocab_size=17, width=16, layers=3, heads=4, kv_heads=2, head_dim=4, mlp_dim=24, remat="full"
)
CONFIGS = {
    "grouped": BASE,
    "multi_head": dataclasses.replace(BASE, kv_heads=4),
    "window": dataclasses.replace(BASE, sliding_window=3),
}
PROMPT, NEW = 6, 4
LENGTHS = np.array([3, 6, 1])


@pytest.fixture(scope="module")
def model() -> Llama:
    return Llama(BASE, nnx.Rngs(0))


@pytest.fixture(scope="module")
def inputs() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Embeddings, positions and segment ids of three rows of different length."""
    return rows(LENGTHS, PROMPT)


def rows(lengths: np.ndarray, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(1)
    places = np.arange(size)[None]
    real = places < lengths[:, None]
    x = rng.normal(size=(len(lengths), size, BASE.width)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(np.where(real, places, 0)), jnp.asarray(real.astype(int))


def test_embed_and_untied_logits(model: Llama) -> None:
    tokens = jnp.array([[3, 0, 16]])
    x = model.embed(tokens)
    np.testing.assert_array_equal(x[0], np.asarray(model.embedding[...])[[3, 0, 16]])
    logits = model.logits(x.astype(jnp.bfloat16))
    assert logits.dtype == jnp.float32
    want = np.asarray(x) @ np.asarray(model.lm_head[...])
    np.testing.assert_allclose(logits, want, atol=2e-2 * np.abs(want).max())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("chunk", [0, 4])
def test_padding_of_the_vocabulary_changes_no_loss_and_is_never_predicted(
    tied: bool, chunk: int
) -> None:
    """Whatever its rows hold."""
    config = dataclasses.replace(BASE, tie_embeddings=tied, logits_chunk=chunk)
    batch = random_batch(tiny_spec(tiny_config()), rows=2, seed=0, vocab=BASE.vocab_size)
    states = jax.random.normal(jax.random.key(1), (*batch.tokens.shape, BASE.width))
    plain = Llama(config, nnx.Rngs(0))
    padded = Llama(dataclasses.replace(config, vocab_padding=5), nnx.Rngs(0))
    for own, old, axis in (
        (padded.embedding, plain.embedding, 0),
        (padded.lm_head, plain.lm_head, 1),
    ):
        if own is not None and old is not None:
            more = [(0, 5 * (k == axis)) for k in range(2)]
            own[...] = jnp.pad(old[...], more, constant_values=50.0)

    def loss(model: Llama, states: jax.Array) -> jax.Array:
        whole = SimpleNamespace(llama=model, config=SimpleNamespace(llama=model.config))
        return language_loss_sum(whole, states, batch)  # type: ignore[arg-type]

    want, found = (
        jax.value_and_grad(lambda x, model=model: loss(model, x))(states)
        for model in (plain, padded)
    )
    np.testing.assert_allclose(found[0], want[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], want[1], atol=1e-6)
    assert int(padded.logits(states).argmax(-1).max()) < BASE.vocab_size


def test_tied_logits_use_the_embedding() -> None:
    model = Llama(dataclasses.replace(BASE, tie_embeddings=True), nnx.Rngs(0))
    assert model.lm_head is None
    x = jnp.ones((1, 2, BASE.width))
    want = np.asarray(model.embedding[...]).sum(-1)
    np.testing.assert_allclose(model.logits(x)[0, 1], want, atol=1e-5)


def test_padding_and_the_future_are_not_seen(model: Llama, inputs: tuple) -> None:
    x, positions, segments = inputs
    hidden = model(x, positions, segments).hidden
    noise = jnp.where((segments > 0)[..., None], x, 9.0)
    real = np.asarray(segments) > 0
    np.testing.assert_allclose(
        np.asarray(model(noise, positions, segments).hidden)[real], np.asarray(hidden)[real]
    )
    changed = model(x.at[1, 4].add(1.0), positions, segments).hidden
    np.testing.assert_allclose(changed[1, :4], hidden[1, :4], atol=1e-6)
    assert np.abs(changed[1, 4:] - hidden[1, 4:]).max(-1).min() > 1e-3


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_segments_are_as_if_alone(name: str) -> None:
    model = Llama(CONFIGS[name], nnx.Rngs(0))
    x, _, _ = rows(np.array([7]), 7)
    positions, segments = jnp.array([[0, 1, 2, 0, 1, 2, 3]]), jnp.array([[1, 1, 1, 2, 2, 2, 2]])
    packed = model(x, positions, segments).hidden
    for part in (slice(0, 3), slice(3, 7)):
        alone = model(x[:, part], positions[:, part], segments[:, part]).hidden
        np.testing.assert_allclose(packed[:, part], alone, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_cached_states_equal_teacher_forced_ones(name: str) -> None:
    """Rows of different prompt length decode together: own positions, shared slots."""
    model = Llama(CONFIGS[name], nnx.Rngs(0))
    whole, positions, segments = rows(LENGTHS + NEW, PROMPT + NEW)
    forced = np.asarray(model(whole, positions, segments).hidden)
    real = jnp.arange(PROMPT)[None] < LENGTHS[:, None]
    cache = model.init_cache(3, PROMPT + NEW, jnp.float32)
    prompt = jnp.where(real[..., None], whole[:, :PROMPT], 5.0)
    hidden, cache = model.prefill(
        prompt, jnp.where(real, positions[:, :PROMPT], 0), real.astype(jnp.int32), cache
    )
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(hidden[row, :length], forced[row, :length], atol=1e-5)
    graph, state = nnx.split(model)
    step = jax.jit(lambda s, *inputs: nnx.merge(graph, s).decode_step(*inputs))
    for t in range(NEW):
        place = jnp.asarray(LENGTHS + t)[:, None]
        token = jnp.take_along_axis(whole, place[..., None], axis=1)
        hidden, cache = step(state, token, place, cache, jnp.int32(PROMPT + t))
        want = forced[np.arange(3), LENGTHS + t]
        np.testing.assert_allclose(hidden[:, 0], want, atol=1e-5)
    assert step._cache_size() == 1  # the slot is data, not a new program


def test_a_sliding_window_forgets() -> None:
    """With one layer, position 5 sees 3, 4 and 5 only."""
    model = Llama(dataclasses.replace(CONFIGS["window"], layers=1), nnx.Rngs(0))
    x, positions, segments = rows(np.array([6]), 6)
    hidden = model(x, positions, segments).hidden[0, 5]
    far = model(x.at[0, 2].add(1.0), positions, segments).hidden[0, 5]
    near = model(x.at[0, 3].add(1.0), positions, segments).hidden[0, 5]
    np.testing.assert_array_equal(far, hidden)
    assert np.abs(near - hidden).max() > 1e-3


def test_prompts_longer_than_the_cache_are_refused(model: Llama, inputs: tuple) -> None:
    cache = model.init_cache(3, PROMPT - 1, jnp.float32)
    with pytest.raises(ValueError, match=r"6 positions.*5 slots"):
        model.prefill(*inputs, cache)


def test_no_edits_is_the_very_same_program(model: Llama, inputs: tuple) -> None:
    graph, state = nnx.split(model)

    def program(edits: object) -> str:
        run = jax.jit(lambda s, *x: nnx.merge(graph, s)(*x, edits=edits).hidden)
        return run.lower(state, *inputs).as_text()

    plain = program(None)
    assert plain == program(())
    assert plain.count("stablehlo.while") == 1
    assert program([Edit(site="block_in", layer=1, tap="t")]).count("stablehlo.while") == 3


def test_taps_are_the_residual_stream(model: Llama, inputs: tuple) -> None:
    edits = [Edit(site="input_emb", tap="input"), Edit(site="last_hidden", tap="last")]
    for layer in range(BASE.layers):
        for site in ("block_in", "attn_out", "ffn_out"):
            edits.append(Edit(site=site, layer=layer, tap=f"{site}{layer}"))
    found, plain = model(*inputs, edits=edits), model(*inputs)
    assert plain.taps == {}
    assert set(found.taps) == {edit.tap for edit in edits}
    stream = inputs[0]
    np.testing.assert_array_equal(found.taps["input"], stream)
    for layer in range(BASE.layers):
        np.testing.assert_allclose(found.taps[f"block_in{layer}"], stream, atol=1e-5)
        stream = stream + found.taps[f"attn_out{layer}"] + found.taps[f"ffn_out{layer}"]
    np.testing.assert_allclose(model.norm(stream), plain.hidden, atol=1e-5)
    np.testing.assert_array_equal(found.taps["last"], found.hidden)
    np.testing.assert_allclose(found.hidden, plain.hidden, atol=1e-6)


def test_changes_act_where_they_are_named(model: Llama, inputs: tuple) -> None:
    x, positions, segments = inputs
    silent = [Edit(site=s, layer=1, change=jnp.zeros_like) for s in ("attn_out", "ffn_out")]
    tapped = [
        Edit(site="block_in", layer=1, tap="before"),
        Edit(site="block_in", layer=2, tap="after"),
    ]
    taps = model(x, positions, segments, edits=[*silent, *tapped]).taps
    np.testing.assert_array_equal(taps["after"], taps["before"])
    doubled = model(x, positions, segments, edits=[Edit(site="input_emb", change=lambda v: 2 * v)])
    want = model(2 * x, positions, segments)
    np.testing.assert_allclose(doubled.hidden, want.hidden, atol=1e-6)


def test_an_array_takes_the_place_of_an_activation(model: Llama, inputs: tuple) -> None:
    """The state of one run injected into another makes both end alike."""
    x, positions, segments = inputs
    source = model(x, positions, segments, edits=[Edit(site="block_in", layer=2, tap="state")])
    moved = Edit(site="block_in", layer=2, change=source.taps["state"])
    other = model(x + 1.0, positions, segments, edits=[moved])
    np.testing.assert_allclose(other.hidden, source.hidden, atol=1e-5)


def test_gradients_flow_through_taps_under_remat(model: Llama, inputs: tuple) -> None:
    x, positions, segments = inputs
    shift = jnp.ones(BASE.width)

    def loss(shift: jax.Array) -> jax.Array:
        edits = [
            Edit(site="attn_out", layer=0, change=lambda v: v + shift),
            Edit(site="ffn_out", layer=2, tap="out"),
        ]
        return jnp.square(model(x, positions, segments, edits=edits).taps["out"]).sum()

    grad = jax.jit(jax.grad(loss))(shift)
    eps = 1e-2
    numeric = (loss(shift + eps) - loss(shift - eps)) / (2 * eps)
    assert abs(float(numeric)) > 1e-2
    np.testing.assert_allclose(grad.sum(), numeric, rtol=1e-2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"site": "block_in"}, "a layer goes with"),
        ({"site": "last_hidden", "layer": 0}, "a layer goes with"),
        ({"site": "blockin", "layer": 0}, "'blockin' is unknown"),
    ],
)
def test_misplaced_edits_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Edit(**fields)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([Edit(site="block_in", layer=3)], r"layers 0\.\.2"),
        ([Edit(site="input_emb", tap="a"), Edit(site="last_hidden", tap="a")], "'a'.*more than"),
        ([Edit(site="input_emb", change=jnp.zeros(3))], r"\(3,\).*\(3, 6, 16\)"),
    ],
)
def test_impossible_edits_are_refused(
    model: Llama, inputs: tuple, edits: list[Edit], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model(*inputs, edits=edits)


def test_projections_are_born_with_unit_gain_and_small_residuals() -> None:
    wide = dataclasses.replace(BASE, width=64, heads=8, kv_heads=8, head_dim=8, mlp_dim=128)
    block = Llama(wide, nnx.Rngs(0)).blocks.block
    residual = 1 / np.sqrt(2 * wide.layers)
    for projection, fan_in, gain in (
        (block.attn.q, 64, 1.0),
        (block.attn.o, 64, residual),
        (block.mlp.gate, 64, 1.0),
        (block.mlp.down, 128, residual),
    ):
        spread = float(np.std(projection.kernel[...]))
        np.testing.assert_allclose(spread, gain / np.sqrt(fan_in), rtol=0.05)


def test_bf16_stays_bf16(model: Llama, inputs: tuple) -> None:
    x, positions, segments = inputs
    narrow = model(x.astype(jnp.bfloat16), positions, segments).hidden
    assert narrow.dtype == jnp.bfloat16
    wide = model(x, positions, segments).hidden
    assert np.abs(narrow.astype(jnp.float32) - wide).max() < 0.1
