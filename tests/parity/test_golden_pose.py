"""The recorded numbers of the PyTorch keypoint decoder: points, loss and gradients."""

import json
from pathlib import Path

import golden_pose_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from refvlm_jax.config.model import BoxUnitConfig, KeypointUnitConfig
from refvlm_jax.models.units.keypoint import KeypointOutputs, KeypointUnit
from refvlm_jax.models.units.keypoint_losses import (
    keypoint_loss_counts,
    keypoint_loss_sums,
    keypoint_loss_weights,
)
from refvlm_jax.train.model_def import define

BUNDLE = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "refvlm_pose"
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not BUNDLE.with_suffix(".config.json").exists(), reason="no golden bundle"),
]
REF = 1  # of the recorded token masks
Setup = tuple[KeypointUnit, dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]


def unit_config(c: dict) -> KeypointUnitConfig:
    def sizes(x: dict) -> dict:
        return dict(
            features=tuple(x["encoder_input_index"]),
            width=x["d_model"],
            layers=x["decoder_layers"],
            heads=x["decoder_attention_heads"],
            mlp_dim=x["decoder_ffn_dim"],
            dropout=x["dropout"],
        )

    box = BoxUnitConfig(num_queries=c["num_queries"], **sizes(c["box_config"]))
    return KeypointUnitConfig(
        box=box,
        distance_loss="mean",
        auxiliary_weight=c["aux_loss_coefficient"],
        **sizes(c["keypoint_config"]),
    )


def make_inputs(
    c: dict, t: dict[str, np.ndarray], config: KeypointUnitConfig
) -> dict[str, np.ndarray]:
    """Recorded states in their slots and targets in the order of the text."""
    hidden, marks = t["out.llm_last_hidden"], t["out.mm_token_masks"]
    rows, slots = len(hidden), config.num_queries
    found = {
        "queries": np.zeros((rows, slots, hidden.shape[-1]), np.float32),
        "valid": np.zeros((rows, slots), np.bool_),
        "group": np.full((rows, slots), -1),
        "boxes": np.zeros((rows, slots, 4), np.float32),
        "keypoints": np.zeros((rows, slots, 17, 3), np.float32),
    }
    boxes, keypoints = iter(t["in.boxes_cxcywh"]), iter(t["in.keypoints"])
    for b, groups in enumerate(c["decode_seqs"]):
        states = hidden[b][marks[b] == REF]
        found["queries"][b, : len(states)], found["valid"][b, : len(states)] = states, True
        for slot, number in enumerate(g for g, seq in enumerate(groups or []) for _ in seq):
            found["group"][b, slot] = number
            found["boxes"][b, slot], found["keypoints"][b, slot] = next(boxes), next(keypoints)
    return found


@pytest.fixture(scope="module")
def setup() -> Setup:
    c = json.loads(BUNDLE.with_suffix(".config.json").read_text())
    t = load_file(BUNDLE.with_suffix(".tensors.safetensors"))
    pose = c["visual_decoder"]["pose"]
    config = unit_config(pose)
    dims = (c["visual_encoder"]["hidden_size"],) * (c["visual_encoder"]["num_hidden_layers"] + 1)
    unit = define(lambda rngs: KeypointUnit(config, dims, c["llm"]["hidden_size"], rngs))
    weights = load_file(BUNDLE.with_suffix(".weights.safetensors"))
    weights = golden_pose_weights.keypoint(weights, pose)
    assert {n: v.shape for n, v in weights.items()} == unit.shapes
    model = unit.merge({name: jnp.asarray(value) for name, value in weights.items()})
    return model, weights, t, make_inputs(c, t, config)


def decode(unit: KeypointUnit, t: dict, inputs: dict) -> KeypointOutputs:
    grids = (t[f"out.clip_hidden_{k}"][:, 1:] for k in range(5))
    maps = [jnp.asarray(g.reshape(len(g), 6, 6, -1)) for g in grids]
    return unit(jnp.asarray(inputs["queries"]), jnp.asarray(inputs["valid"]), maps)


def loss(unit: KeypointUnit, t: dict, inputs: dict) -> jax.Array:
    targets = [jnp.asarray(inputs[k]) for k in ("boxes", "keypoints", "group", "valid")]
    sums = keypoint_loss_sums(decode(unit, t, inputs), *targets, unit.config)
    counts = keypoint_loss_counts(targets[1], targets[3], unit.config)
    weights = keypoint_loss_weights(unit.config)
    assert weights.keys() == sums.keys() == counts.keys()
    return sum(weights[k] * sums[k] / counts[k] for k in sums)


def test_points(setup: Setup) -> None:
    unit, _, t, inputs = setup
    found = np.asarray(decode(unit, t, inputs).points)[inputs["valid"]]
    want = t["out.pose_preds"]
    np.testing.assert_allclose(found, want, atol=1e-4 * np.abs(want).max(), rtol=0)


def test_loss(setup: Setup) -> None:
    unit, _, t, inputs = setup
    np.testing.assert_allclose(loss(unit, t, inputs), t["loss.pose_cost"][0], rtol=1e-5)


def test_gradients(setup: Setup) -> None:
    unit, weights, t, inputs = setup
    names = json.loads(BUNDLE.with_suffix(".config.json").read_text())["visual_decoder"]["pose"]
    model = define(lambda rngs: KeypointUnit(unit.config, (32,) * 5, 64, rngs))
    params = {name: jnp.asarray(value) for name, value in weights.items()}
    grads = jax.jit(jax.grad(lambda p: loss(model.merge(p), t, inputs)))(params)
    # The norm of each recorded tensor, put where our names are: layers stand stacked in ours.
    mark = "gradnorm."
    norms = {k.removeprefix(mark): v.reshape(1, 1) for k, v in t.items() if k.startswith(mark)}
    found = golden_pose_weights.keypoint(norms, names)
    assert found.keys() == grads.keys()
    for name, want in found.items():
        grad = np.asarray(grads[name])
        layered = ".layers.block." in name
        axes = tuple(range(1 if layered else 0, grad.ndim))
        norm = np.sqrt(np.square(grad).sum(axes))
        np.testing.assert_allclose(norm, want.reshape(norm.shape), rtol=2e-4, atol=1e-6)
    key = "grad.visual_decoder.pose.kpt_decoder.kpt_embedding.weight"
    np.testing.assert_allclose(grads["part"], t[key], atol=1e-4 * np.abs(t[key]).max(), rtol=0)
