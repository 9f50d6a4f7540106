"""Box and mask units on the maps of a visual tower, against recorded PyTorch numbers.

The tower's maps have sizes that are no integer multiple of the vision transformer's grid.
"""

import json

import golden_vision
import golden_weights
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from test_golden_box_mask import make_batch, model_config

from refvlm_jax.models.objective import loss_counts, loss_sums, loss_weights
from refvlm_jax.models.refvlm import RefVLM, UnitOutputs
from refvlm_jax.models.units.box import BoxUnit
from refvlm_jax.models.units.features import tower_dims, with_tower
from refvlm_jax.models.units.mask import MaskUnit
from refvlm_jax.train.model_def import define

BUNDLE = golden_vision.GOLDEN / "refvlm_tower"
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not BUNDLE.with_suffix(".config.json").exists(), reason="no golden bundle"),
]
TERMS = {"box": ("box_l1", "box_giou"), "mask": ("mask_focal", "mask_dice")}


class WithTower(RefVLM):
    """The model reading given tower maps; its units are built for their channels."""

    def __init__(self, config, dims, maps, rngs):
        super().__init__(config, rngs)
        self.box = BoxUnit(config.box, dims, config.llama.width, rngs)
        self.mask = MaskUnit(config.mask, dims, config.llama.width, rngs)
        self.given = maps

    def encode_images(self, images):
        return with_tower(super().encode_images(images), self.given())


@pytest.fixture(scope="module")
def setup() -> tuple:
    c = json.loads(BUNDLE.with_suffix(".config.json").read_text())
    t = load_file(BUNDLE.with_suffix(".tensors.safetensors"))
    maps = [t[f"in.tower_hidden_{k}"].transpose(0, 2, 3, 1) for k in range(4)]
    config = model_config(c)
    dims = tower_dims([m.shape[-1] for m in maps], config.vision.width)
    weights = golden_weights.refvlm(load_file(BUNDLE.with_suffix(".weights.safetensors")), c)
    given = lambda: [jnp.asarray(m) for m in maps]  # noqa: E731
    model = define(lambda rngs: WithTower(config, dims, given, rngs))
    assert {name: value.shape for name, value in weights.items()} == model.shapes
    params = {name: jnp.asarray(value) for name, value in weights.items()}
    return model.merge(params), make_batch(c, t, config), t, c


@pytest.fixture(scope="module")
def outputs(setup: tuple) -> tuple[np.ndarray, UnitOutputs]:
    return setup[0](setup[1])


def close(found: np.ndarray, want: np.ndarray, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(found, want, atol=tolerance * np.abs(want).max(), rtol=0)


def test_states(setup: tuple, outputs: tuple) -> None:
    real = np.asarray(setup[1].segment_ids) > 0
    close(np.asarray(outputs[0])[real], setup[2]["out.llm_last_hidden"][real])


def test_boxes_and_masks(setup: tuple, outputs: tuple) -> None:
    t, units = setup[2], outputs[1]
    close(np.asarray(units.boxes)[0, :3], t["out.box_preds"])
    close(np.asarray(units.mask_logits)[1, 0, :2], t["out.mask_preds"])


def test_losses(setup: tuple) -> None:
    model, batch, t, c = setup
    sums, counts = loss_sums(model, batch, None), loss_counts(model.config, batch)
    mean = {k: float(sums[k]) / float(counts[k]) for k in sums}
    weights = loss_weights(model.config)
    total = c["loss_coefficient"]["llm"] * mean["llm"]
    np.testing.assert_allclose(mean["llm"], t["loss.llm_cost"], rtol=1e-5)
    for unit, terms in TERMS.items():
        cost = sum(weights[k] * mean[k] for k in terms)
        np.testing.assert_allclose(cost, t[f"loss.{unit}_cost"], rtol=1e-5)
        total += c["loss_coefficient"][unit] * cost
    np.testing.assert_allclose(total, t["loss.loss"], rtol=1e-5)
