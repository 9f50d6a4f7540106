"""Tower, prompts, projector and Llama against recorded PyTorch numbers, one module at a time.

Each module gets the recorded input of its own stage, so that a failure names the module at fault.
"""

import json
from collections.abc import Callable
from pathlib import Path

import golden_weights
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from refvlm_jax.config import model as cfg
from refvlm_jax.models.clip_vit import ClipViT
from refvlm_jax.models.llama import Llama
from refvlm_jax.models.projector import Projector
from refvlm_jax.models.region_prompts import RegionPromptEncoder
from refvlm_jax.train.model_def import define

BUNDLE = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "refvlm_box_mask"
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not BUNDLE.with_suffix(".config.json").exists(), reason="no golden bundle"),
]
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def config() -> dict:
    return json.loads(BUNDLE.with_suffix(".config.json").read_text())


@pytest.fixture(scope="module")
def weights() -> Arrays:
    return load_file(BUNDLE.with_suffix(".weights.safetensors"))


@pytest.fixture(scope="module")
def recorded() -> Arrays:
    return load_file(BUNDLE.with_suffix(".tensors.safetensors"))


def build(model_fn: Callable[[nnx.Rngs], nnx.Module], weights: Arrays) -> nnx.Module:
    """The module with exactly these weights; a missing, left-over or misshapen one fails."""
    model = define(model_fn)
    assert {name: value.shape for name, value in weights.items()} == model.shapes
    return model.merge({name: jnp.asarray(value) for name, value in weights.items()})


def close(found: np.ndarray, want: np.ndarray, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(found, want, atol=tolerance * np.abs(want).max(), rtol=0)


@pytest.fixture(scope="module")
def tower(config: dict, weights: Arrays) -> ClipViT:
    v = config["visual_encoder"]
    vision = cfg.VisionConfig(
        image_size=v["image_size"],
        patch_size=v["patch_size"],
        width=v["hidden_size"],
        layers=v["num_hidden_layers"],
        heads=v["num_attention_heads"],
        mlp_dim=v["intermediate_size"],
        feature_layer=config["visual_select_layer"],
        activation=v["hidden_act"],
    )
    found = golden_weights.clip(weights, vision.layers)
    return build(lambda rngs: ClipViT(vision, rngs), found)


@pytest.fixture(scope="module")
def llama(config: dict, weights: Arrays) -> Llama:
    t = config["llm"]
    text = cfg.LlamaConfig(
        vocab_size=t["vocab_size"],
        width=t["hidden_size"],
        layers=t["num_hidden_layers"],
        heads=t["num_attention_heads"],
        kv_heads=t["num_key_value_heads"],
        head_dim=t["hidden_size"] // t["num_attention_heads"],
        mlp_dim=t["intermediate_size"],
        rope_theta=t["rope_theta"],
        norm_eps=t["rms_norm_eps"],
    )
    found = golden_weights.llama(weights, text.layers, text.heads, text.kv_heads)
    return build(lambda rngs: Llama(text, rngs), found)


def test_every_hidden_state_of_the_tower(tower: ClipViT, recorded: Arrays) -> None:
    images = recorded["in.pixel_values"].transpose(0, 2, 3, 1)
    features = tower(jnp.asarray(images))
    assert len(features.maps) == 5
    for index, found in enumerate(features.maps):
        want = recorded[f"out.clip_hidden_{index}"][:, 1:]
        close(np.asarray(found).reshape(want.shape), want)
    close(features.tokens, recorded["out.clip_hidden_3"][:, 1:])


def test_region_prompts(config: dict, weights: Arrays, recorded: Arrays) -> None:
    region = cfg.RegionPromptConfig(num_patches=config["vpt_encoder"]["num_patches"])
    found = {"position": weights["vpt_encoder.model.position_embedding.weight"]}
    found |= golden_weights.linear(weights, "vpt_encoder.model.mask_embedding", "mask_token")
    encoder = build(lambda rngs: RegionPromptEncoder(region, 32, 6, rngs), found)
    # The prompts belong to sample 1; the other rows were padded with empty ones.
    masks = np.zeros((3, *recorded["in.vpt_masks"].shape), np.float32)
    masks[1] = recorded["in.vpt_masks"]
    features = jnp.asarray(recorded["out.clip_hidden_3"][:, 1:])
    close(encoder(features, jnp.asarray(masks)), recorded["out.vpt_feats"])


def test_projector(weights: Arrays, recorded: Arrays) -> None:
    found = golden_weights.linear(weights, "projector.model.0", "layers.0")
    found |= golden_weights.linear(weights, "projector.model.2", "layers.1")
    projector = build(lambda rngs: Projector(32, 64, 2, rngs), found)
    prompts = recorded["out.vpt_feats"]
    tokens = np.concatenate(
        [recorded["out.clip_hidden_3"][:, 1:], prompts.reshape(len(prompts), -1, 32)], axis=1
    )
    close(projector(jnp.asarray(tokens)), recorded["out.projector_out"])


def test_llama_states_and_logits(llama: Llama, recorded: Arrays) -> None:
    real = recorded["out.mm_attention_mask"]
    positions = np.where(real, np.arange(real.shape[1])[None], 0)
    embeddings = jnp.asarray(recorded["out.inputs_embeds"])
    hidden = llama(embeddings, jnp.asarray(positions), jnp.asarray(real, jnp.int32)).hidden
    close(np.asarray(hidden)[real], recorded["out.llm_last_hidden"][real])
    close(np.asarray(llama.logits(hidden))[real], recorded["out.logits"][real])


def test_text_embeddings(llama: Llama, recorded: Arrays) -> None:
    """Before the first sentinel, ids and input embeddings stand at the same positions."""
    ids, embeddings = recorded["in.input_ids"], recorded["out.inputs_embeds"]
    for row in range(len(ids)):
        plain = int((ids[row] < 0).argmax()) if (ids[row] < 0).any() else ids.shape[1]
        assert plain > 0
        found = llama.embed(jnp.asarray(ids[row : row + 1, :plain]))
        np.testing.assert_array_equal(found[0], embeddings[row, :plain])
