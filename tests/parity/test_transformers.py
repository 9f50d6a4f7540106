"""Language model, vision tower and decoders against the installed transformers, random weights."""

from collections.abc import Callable, Mapping

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_weights import Weights

from refvlm_jax.config.model import LlamaConfig, VisionConfig
from refvlm_jax.models.clip_vit import ClipViT
from refvlm_jax.models.llama import Llama
from refvlm_jax.models.units.detr import DetrDecoder
from refvlm_jax.models.units.fpn import PixelDecoder
from refvlm_jax.train.model_def import define

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

LAYERS, HEADS, PROMPT, NEW = 2, 4, 9, 7
# Key heads and sliding window; the window is shorter than the prompt.
KINDS = {"llama": (4, None), "grouped llama": (2, None), "mistral": (2, 4)}


def randomise(module: "torch.nn.Module", scale: float = 0.3) -> Weights:
    """Gives every parameter random numbers, norms included, and returns them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in module.named_parameters():
            noise = scale * torch.randn(value.shape, generator=generator)
            value.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def build(model_fn: Callable[[nnx.Rngs], nnx.Module], weights: Mapping[str, np.ndarray]):
    """The module with exactly these weights; a missing, left-over or misshapen one fails."""
    model = define(model_fn)
    assert {name: value.shape for name, value in weights.items()} == model.shapes
    return model.merge({name: jnp.asarray(value) for name, value in weights.items()})


def close(found: jax.Array, want: "torch.Tensor", tolerance: float = 1e-4) -> None:
    want = want.detach().numpy()
    np.testing.assert_allclose(found, want, atol=tolerance * np.abs(want).max(), rtol=0)


@pytest.fixture(scope="module", params=KINDS)
def language_models(request: pytest.FixtureRequest) -> tuple:
    kv_heads, window = KINDS[request.param]
    sizes = dict(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=kv_heads,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        attn_implementation="eager",
        pad_token_id=0,
        eos_token_id=None,
    )
    if window is None:
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    else:
        made = transformers.MistralConfig(**sizes, sliding_window=window)
        theirs = transformers.MistralForCausalLM(made)
    weights = {f"llm.{name}": value for name, value in randomise(theirs).items()}
    config = LlamaConfig(
        vocab_size=50,
        width=32,
        layers=LAYERS,
        heads=HEADS,
        kv_heads=kv_heads,
        head_dim=8,
        mlp_dim=40,
        rope_theta=500.0,
        sliding_window=window,
    )
    found = golden_weights.llama(weights, LAYERS, HEADS, kv_heads)
    return theirs.eval(), build(lambda rngs: Llama(config, rngs), found)


@pytest.fixture(scope="module")
def prompts() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 50, (2, PROMPT))


def test_logits(language_models: tuple, prompts: np.ndarray) -> None:
    theirs, ours = language_models
    graph, state = nnx.split(ours)

    @jax.jit
    def logits(state: nnx.State, ids: jax.Array) -> jax.Array:
        model = nnx.merge(graph, state)
        positions = jnp.broadcast_to(jnp.arange(PROMPT), ids.shape)
        hidden = model(model.embed(ids), positions, jnp.ones_like(ids)).hidden
        return model.logits(hidden)

    want = theirs(torch.tensor(prompts)).logits
    close(logits(state, jnp.asarray(prompts)), want)


def test_greedy_tokens(language_models: tuple, prompts: np.ndarray) -> None:
    """The cache, too, forgets what the window has left behind."""
    theirs, ours = language_models
    graph, state = nnx.split(ours)

    @jax.jit
    def generate(state: nnx.State, ids: jax.Array) -> jax.Array:
        model, rows = nnx.merge(graph, state), len(ids)
        cache = model.init_cache(rows, PROMPT + NEW, jnp.float32)
        positions = jnp.broadcast_to(jnp.arange(PROMPT), ids.shape)
        hidden, cache = model.prefill(model.embed(ids), positions, jnp.ones_like(ids), cache)

        def step(carry: tuple, t: jax.Array) -> tuple[tuple, jax.Array]:
            last, cache = carry
            token = model.logits(last).argmax(-1)
            place = jnp.full((rows, 1), PROMPT + t)
            last, cache = model.decode_step(model.embed(token), place, cache, PROMPT + t)
            return (last, cache), token[:, 0]

        _, tokens = jax.lax.scan(step, (hidden[:, -1:], cache), jnp.arange(NEW))
        return tokens.T

    ids = torch.tensor(prompts)
    want = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW
    )
    found = generate(state, jnp.asarray(prompts))
    np.testing.assert_array_equal(found, want[:, PROMPT:].numpy())
    assert len(np.unique(found)) > 3


def test_every_hidden_state_of_clip() -> None:
    theirs = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            image_size=20,
            patch_size=5,
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=3,
            intermediate_size=30,
        )
    ).eval()
    key = "visual_encoder.vision_model."
    weights = {key + k.removeprefix("vision_model."): v for k, v in randomise(theirs).items()}
    config = VisionConfig(
        image_size=20, patch_size=5, width=24, layers=3, heads=3, mlp_dim=30, feature_layer=-2
    )
    ours = build(lambda rngs: ClipViT(config, rngs), golden_weights.clip(weights, 3))
    pixels = np.random.default_rng(0).normal(size=(2, 3, 20, 20)).astype(np.float32)
    want = theirs(torch.tensor(pixels), output_hidden_states=True).hidden_states
    features = jax.jit(lambda x: ours(x))(jnp.asarray(pixels.transpose(0, 2, 3, 1)))
    assert len(features.maps) == len(want) == 4
    for found, state in zip(features.maps, want, strict=True):
        close(found.reshape(2, 16, 24), state[:, 1:])
    close(features.tokens, want[-2][:, 1:])


@pytest.mark.parametrize("hide", [False, True])
def test_detr_decoder_layers(hide: bool) -> None:
    from transformers.models.detr.modeling_detr import DetrDecoderLayer

    config = transformers.DetrConfig(
        backbone_config=transformers.ResNetConfig(),
        d_model=16,
        decoder_attention_heads=4,
        decoder_ffn_dim=20,
        attn_implementation="eager",
    )
    theirs = torch.nn.Module()
    theirs.layers = torch.nn.ModuleList([DetrDecoderLayer(config) for _ in range(2)])
    theirs.layernorm = torch.nn.LayerNorm(16)
    theirs.eval()
    renamed = {
        f"d.{k}".replace("o_proj", "out_proj").replace("mlp.", ""): v
        for k, v in randomise(theirs).items()
    }
    found = {k.removeprefix("d."): v for k, v in golden_weights.detr(renamed, "d", 2, "d").items()}
    ours = build(lambda rngs: DetrDecoder(16, 2, 4, 20, rngs, rate=0.1), found)
    rng = np.random.default_rng(0)
    sizes = {"x": (2, 5, 16), "pos": (5, 16), "memory": (2, 7, 16), "memory_pos": (7, 16)}
    given = {k: rng.normal(size=s).astype(np.float32) for k, s in sizes.items()}
    seen = np.array([[True] * 5, [True, True, False, False, False]])[:, None] if hide else None
    t = {k: torch.tensor(v) for k, v in given.items()}
    low = torch.finfo(torch.float32).min
    mask = None if seen is None else torch.where(torch.tensor(seen)[:, None], 0.0, low)
    want = t["x"]
    for layer in theirs.layers:
        want = layer(
            want,
            attention_mask=None if mask is None else mask.expand(2, 1, 5, 5),
            spatial_position_embeddings=t["memory_pos"][None],
            object_queries_position_embeddings=t["pos"][None],
            encoder_hidden_states=t["memory"],
        )
    found = jax.jit(lambda *args: ours(*args))(
        *map(jnp.asarray, given.values()), None if seen is None else jnp.asarray(seen)
    )
    close(found, theirs.layernorm(want))


def test_maskformer_pixel_decoder() -> None:
    """At sizes of which none is a multiple of the next."""
    from transformers.models.maskformer.modeling_maskformer import MaskFormerPixelDecoder

    dims, sides = (4, 8, 12), (13, 8, 5)
    theirs = MaskFormerPixelDecoder(
        in_features=dims[-1], lateral_widths=list(dims[:-1]), feature_size=32, mask_feature_size=32
    ).eval()
    weights = {f"p.{k}": v for k, v in randomise(theirs).items()}
    found = golden_weights.pixel_decoder(weights, "p", 2)
    ours = build(lambda rngs: PixelDecoder(dims, 32, 32, rngs), found)
    rng = np.random.default_rng(0)
    maps = [
        rng.normal(size=(2, c, s, s)).astype(np.float32) for c, s in zip(dims, sides, strict=True)
    ]
    want = theirs([torch.tensor(m) for m in maps]).last_hidden_state
    pixels = jax.jit(lambda m: ours(m))([jnp.asarray(m.transpose(0, 2, 3, 1)) for m in maps])
    close(pixels, want.permute(0, 2, 3, 1))
