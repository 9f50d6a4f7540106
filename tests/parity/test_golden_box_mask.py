"""The recorded numbers of the PyTorch model: features, states, boxes, masks, every loss."""

import json
from pathlib import Path

import golden_weights
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from refvlm_jax.batch import Batch, BatchSpec, empty_row
from refvlm_jax.config import model as cfg
from refvlm_jax.models.objective import loss_counts, loss_sums, loss_weights
from refvlm_jax.models.refvlm import RefVLM
from refvlm_jax.train.model_def import define
from refvlm_jax.trp.tokens import IGNORE_ID, IMAGE_ID, PROMPT_ID, REF, Unit

BUNDLE = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "refvlm_box_mask"
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not BUNDLE.with_suffix(".config.json").exists(), reason="no golden bundle"),
]


@pytest.fixture(scope="module")
def bundle() -> tuple[dict, dict[str, np.ndarray]]:
    config = json.loads(BUNDLE.with_suffix(".config.json").read_text())
    return config, load_file(BUNDLE.with_suffix(".tensors.safetensors"))


def model_config(c: dict) -> cfg.RefVLMConfig:
    v, t, d = c["visual_encoder"], c["llm"], c["visual_decoder"]

    def decoder(x: dict) -> dict:
        return dict(
            num_queries=x["num_queries"],
            features=tuple(x["encoder_input_index"]),
            width=x["d_model"],
            layers=x["decoder_layers"],
            heads=x["decoder_attention_heads"],
            mlp_dim=x["decoder_ffn_dim"],
        )

    return cfg.RefVLMConfig(
        vision=cfg.VisionConfig(
            image_size=v["image_size"],
            patch_size=v["patch_size"],
            width=v["hidden_size"],
            layers=v["num_hidden_layers"],
            heads=v["num_attention_heads"],
            mlp_dim=v["intermediate_size"],
        ),
        llama=cfg.LlamaConfig(
            vocab_size=t["vocab_size"],
            width=t["hidden_size"],
            layers=t["num_hidden_layers"],
            heads=t["num_attention_heads"],
            kv_heads=t["num_key_value_heads"],
            head_dim=t["hidden_size"] // t["num_attention_heads"],
            mlp_dim=t["intermediate_size"],
        ),
        box=cfg.BoxUnitConfig(**decoder(d["box"])),
        mask=cfg.MaskUnitConfig(**decoder(d["mask"])),
    )


def make_batch(c: dict, t: dict[str, np.ndarray], model: cfg.RefVLMConfig) -> Batch:
    """The bundle's ragged inputs as the static batch."""
    ids, size = t["in.input_ids"], model.vision.image_size
    spec = BatchSpec(
        seq_len=t["out.inputs_embeds"].shape[1],
        image_size=size,
        image_tokens=model.vision.tokens,
        prompts=2,
        refs=10,
        mask_refs=4,
        mask_size=t["in.masks"].shape[-1],
    )
    rows, boxes, masks = [], iter(t["in.boxes_cxcywh"]), iter(t["in.masks"])
    ref_id = c["special_token_ids"][REF]
    for b in range(len(ids)):
        row = empty_row(spec)
        place = fill_text(row, ids[b], t["in.labels"][b], t["in.attention_mask"][b], spec)
        row["image_valid"][0] = True
        unit, groups = c["decode_units"][b], c["decode_seqs"][b]
        refs = np.flatnonzero(row["tokens"][:place] == ref_id)
        for k, (group, _) in enumerate((g, i) for g, seq in enumerate(groups or []) for i in seq):
            row["ref_pos"][k], row["ref_group"][k], row["ref_valid"][k] = refs[k], group, True
            row["ref_unit"][k] = Unit.from_text(unit)
            if unit == "box":
                row["boxes"][k] = next(boxes)
            else:
                row["masks"][k], row["mask_slot"][k] = next(masks), k
        rows.append(row)
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    # Prompt masks are recorded at their own size; the encoder resizes any.
    batch["prompt_masks"] = np.zeros((3, 2, *t["in.vpt_masks"].shape[1:]), np.uint8)
    batch["prompt_masks"][1] = t["in.vpt_masks"]
    batch["images"] = t["in.pixel_values"].transpose(0, 2, 3, 1)[:, None]
    batch["pixel_box"] = pixel_boxes(t["in.pixel_masks"], size)
    return Batch.from_dict(batch)


def fill_text(
    row: dict, ids: np.ndarray, labels: np.ndarray, mask: np.ndarray, spec: BatchSpec
) -> int:
    """Expands image and prompt sentinels; returns the length."""
    place, prompts = 0, 0
    for token, label in zip(ids[mask], labels[mask], strict=True):
        if token == IMAGE_ID:
            row["visual_index"][place : place + spec.image_tokens] = np.arange(spec.image_tokens)
            place += spec.image_tokens
        elif token == PROMPT_ID:
            first = spec.image_tokens + prompts * spec.prompt_tokens
            span = np.arange(first, first + spec.prompt_tokens)
            row["visual_index"][place : place + spec.prompt_tokens] = span
            place, prompts = place + spec.prompt_tokens, prompts + 1
        else:
            row["tokens"][place], row["labels"][place] = token, label
            place += 1
    row["positions"][:place] = np.arange(place)
    row["segment_ids"][:place] = 1
    assert (row["labels"][place:] == IGNORE_ID).all()
    return place


def pixel_boxes(masks: np.ndarray, size: int) -> np.ndarray:
    scale = size / masks.shape[-1]
    boxes = []
    for mask in masks:
        y, x = np.nonzero(mask)
        boxes.append(np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) * scale)
    return np.round(boxes).astype(np.int32)[:, None]


@pytest.fixture(scope="module")
def setup(bundle: tuple) -> tuple[RefVLM, Batch, dict[str, np.ndarray], dict]:
    c, t = bundle
    config = model_config(c)
    weights = golden_weights.refvlm(load_file(BUNDLE.with_suffix(".weights.safetensors")), c)
    model = define(lambda rngs: RefVLM(config, rngs))
    shapes = model.shapes
    for name, value in weights.items():
        if name.startswith("vision.blocks") and value.shape != shapes[name]:
            weights[name] = value[: shapes[name][0]]
    assert {n: v.shape for n, v in weights.items()} == shapes
    params = {name: jnp.asarray(value) for name, value in weights.items()}
    return model.merge(params), make_batch(c, t, config), t, c


def close(found: np.ndarray, want: np.ndarray, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(found, want, atol=tolerance * np.abs(want).max(), rtol=0)


def test_vision_features(setup: tuple) -> None:
    model, batch, t, _ = setup
    features = model.encode_images(batch.images)
    for k, found in enumerate(features.maps):
        want = t[f"out.clip_hidden_{k}"][:, 1:]
        close(np.asarray(found).reshape(want.shape), want)
    close(features.tokens, t["out.clip_hidden_3"][:, 1:])


def test_projector_and_region_prompts(setup: tuple) -> None:
    model, batch, t, _ = setup
    tokens = np.asarray(model.visual_tokens(model.encode_images(batch.images), batch))
    want = t["out.projector_out"]
    close(tokens[:, :36], want[:, :36])
    close(tokens[1, 36:], want[1, 36:])


def test_states_and_logits(setup: tuple) -> None:
    model, batch, t, _ = setup
    hidden, _ = model(batch)
    real = np.asarray(batch.segment_ids) > 0
    close(np.asarray(hidden)[real], t["out.llm_last_hidden"][real])
    close(np.asarray(model.llama.logits(hidden))[real], t["out.logits"][real])


def test_boxes_and_masks(setup: tuple) -> None:
    model, batch, t, _ = setup
    _, units = model(batch)
    close(np.asarray(units.boxes)[0, :3], t["out.box_preds"])
    close(np.asarray(units.mask_logits)[1, 0, :2], t["out.mask_preds"])


def test_losses(setup: tuple) -> None:
    model, batch, t, c = setup
    sums, counts = loss_sums(model, batch, None), loss_counts(model.config, batch)
    mean = {k: float(sums[k]) / float(counts[k]) for k in sums}
    weights = loss_weights(model.config)
    coefficient = c["loss_coefficient"]
    box = sum(weights[k] * mean[k] for k in ("box_l1", "box_giou"))
    mask = sum(weights[k] * mean[k] for k in ("mask_focal", "mask_dice"))
    np.testing.assert_allclose(mean["llm"], t["loss.llm_cost"], rtol=1e-5)
    np.testing.assert_allclose(box, t["loss.box_cost"], rtol=1e-5)
    np.testing.assert_allclose(mask, t["loss.mask_cost"], rtol=1e-5)
    total = coefficient["llm"] * mean["llm"] + coefficient["box"] * box + coefficient["mask"] * mask
    np.testing.assert_allclose(total, t["loss.loss"], rtol=1e-5)
