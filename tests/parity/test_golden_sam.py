"""SAM as a mask unit against recorded PyTorch numbers: embedding, masks, loss, every gradient."""

import json

import golden_vision
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from refvlm_jax.config.model import SamEncoderConfig, SamUnitConfig
from refvlm_jax.models.units.losses import mask_loss_sums
from refvlm_jax.models.units.sam import SamUnit
from refvlm_jax.train.model_def import ModelDef, Params, define

BUNDLE = golden_vision.GOLDEN / "sam_mask"
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not BUNDLE.with_suffix(".config.json").exists(), reason="no golden bundle"),
]
MASKS = 2  # the most references of one sample
Arrays = dict[str, np.ndarray]


def unit_config(c: dict) -> SamUnitConfig:
    s = c["sam"]
    return SamUnitConfig(
        num_queries=c["num_queries"],
        encoder=SamEncoderConfig(
            image_size=s["image_size"],
            patch_size=s["patch_size"],
            width=s["embed_dim"],
            layers=s["depth"],
            heads=s["num_heads"],
            mlp_dim=4 * s["embed_dim"],
            global_layers=tuple(s["global_attn_indexes"]),
            window=s["window_size"],
            out_width=s["out_chans"],
            attention_block=20,
        ),
        layers=s["decoder_depth"],
        heads=s["decoder_heads"],
        mlp_dim=s["decoder_mlp_dim"],
        mask_tokens=s["num_multimask_outputs"] + 1,
        iou_hidden=s["iou_head_hidden_dim"],
        chunk=4,
        focal_weight=c["mask_loss_coefficient"],
        dice_weight=c["dice_loss_coefficient"],
    )


@pytest.fixture(scope="module")
def setup() -> tuple[ModelDef, Params, Arrays, dict]:
    c = json.loads(BUNDLE.with_suffix(".config.json").read_text())
    weights = golden_vision.sam(load_file(BUNDLE.with_suffix(".weights.safetensors")), c)
    model = define(lambda rngs: SamUnit(unit_config(c), c["quries_input_dim"], rngs))
    assert {name: value.shape for name, value in weights.items()} == model.shapes
    params = {name: jnp.asarray(value) for name, value in weights.items()}
    return model, params, load_file(BUNDLE.with_suffix(".tensors.safetensors")), c


def close(found: np.ndarray, want: np.ndarray, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(found, want, atol=tolerance * np.abs(want).max(), rtol=0)


def decode(unit: SamUnit, t: Arrays) -> tuple[jax.Array, jax.Array]:
    """Embedding and mask logits of the recorded pictures and references."""
    embedding = unit.encode(jnp.asarray(t["in.pixel_values_tower"].transpose(0, 2, 3, 1)))
    queries, valid = jnp.asarray(t["in.ref_hidden_states"]), jnp.asarray(t["in.ref_mask"])
    return embedding, unit(queries, valid, (embedding,))


def loss(unit: SamUnit, t: Arrays, groups: list) -> jax.Array:
    """The reference's mask cost of the recorded targets."""
    _, logits = decode(unit, t)
    count, size = t["in.ref_mask"].sum(1), t["in.masks"].shape[-1]
    targets = np.zeros((len(count), MASKS, size, size), np.float32)
    group = np.full((len(count), MASKS), -1)
    masks = iter(t["in.masks"])
    for row, n in enumerate(count):
        for k in range(n):
            targets[row, k] = next(masks)
        group[row, :n] = [g for g, seq in enumerate(groups[row] or []) for _ in seq]
    valid = np.arange(MASKS) < count[:, None]
    pixels = np.repeat(t["in.pixel_masks"][:, None] > 0, MASKS, axis=1)
    config = unit.config
    sums = mask_loss_sums(
        logits[:, :MASKS],
        jnp.asarray(targets),
        jnp.asarray(group),
        jnp.asarray(valid),
        jnp.asarray(pixels),
        config,
    )
    total = config.focal_weight * sums["mask_focal"] + config.dice_weight * sums["mask_dice"]
    return total / count.sum()


def test_embedding_and_masks(setup: tuple) -> None:
    model, params, t, _ = setup
    embedding, logits = jax.jit(lambda p: decode(model.merge(p), t))(params)
    close(embedding, t["out.image_embedding"].transpose(0, 2, 3, 1))
    valid = t["in.ref_mask"]
    assert valid.sum(1).tolist() == [2, 0, 1]
    close(jax.nn.sigmoid(logits)[valid], t["out.mask_probabilities"])
    assert not np.asarray(logits)[~valid].any()


def torch_gradients(weights: Arrays, c: dict, grads: Params) -> Arrays:
    """Our gradients under the reference's names: where a number of each tensor went, it came from."""
    ends = np.cumsum([v.size for v in weights.values()])
    places = np.split(np.arange(ends[-1]), ends[:-1])
    marked = {k: p.reshape(v.shape) for (k, v), p in zip(weights.items(), places, strict=True)}
    flat = np.zeros(ends[-1])
    for name, index in golden_vision.sam(marked, c).items():
        flat[index] = grads[name]
    return {k: flat[index] for k, index in marked.items()}


def test_loss_and_gradients(setup: tuple) -> None:
    model, params, t, c = setup
    value, grads = jax.jit(jax.value_and_grad(lambda p: loss(model.merge(p), t, c["decode_seqs"])))(
        params
    )
    np.testing.assert_allclose(value, t["loss.mask"][0], rtol=1e-5)
    weights = load_file(BUNDLE.with_suffix(".weights.safetensors"))
    found = torch_gradients(weights, c, grads)
    recorded = {k.removeprefix("gradnorm."): v[0] for k, v in t.items() if "gradnorm." in k}
    assert len(recorded) > 150
    for name, want in recorded.items():
        norm = np.linalg.norm(found[f"visual_decoder.mask.{name}"])
        # Biases of keys have no gradient but rounding.
        np.testing.assert_allclose(norm, want, rtol=1e-3, atol=1e-7, err_msg=name)
    silent = [k for k in found if k.removeprefix("visual_decoder.mask.") not in recorded]
    assert not any(found[k].any() for k in silent)
