"""The ConvNeXt tower against recorded PyTorch numbers: stem and every stage."""

import json

import golden_vision
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from refvlm_jax.config.model import ConvNextConfig
from refvlm_jax.models.convnext import ConvNext
from refvlm_jax.train.model_def import define

BUNDLE = golden_vision.GOLDEN / "convnext"
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not BUNDLE.with_suffix(".config.json").exists(), reason="no golden bundle"),
]


@pytest.fixture(scope="module")
def tower() -> ConvNext:
    c = json.loads(BUNDLE.with_suffix(".config.json").read_text())
    config = ConvNextConfig(
        image_size=c["image_size"], depths=tuple(c["depths"]), dims=tuple(c["dims"])
    )
    weights = load_file(BUNDLE.with_suffix(".weights.safetensors"))
    found = golden_vision.convnext(weights, c["depths"])
    model = define(lambda rngs: ConvNext(config, rngs))
    assert {name: value.shape for name, value in found.items()} == model.shapes
    return model.merge({name: jnp.asarray(value) for name, value in found.items()})


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    return load_file(BUNDLE.with_suffix(".tensors.safetensors"))


def close(found: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_allclose(found, want, atol=1e-4 * np.abs(want).max(), rtol=0)


def test_stem_and_stages(tower: ConvNext, recorded: dict[str, np.ndarray]) -> None:
    images = jnp.asarray(recorded["in.pixel_values"].transpose(0, 2, 3, 1))
    close(tower.stem(images), recorded["out.stem"].transpose(0, 2, 3, 1))
    maps = jax.jit(tower)(images)
    assert len(maps) == 4
    for index, found in enumerate(maps):
        close(found, recorded[f"out.stage{index}"].transpose(0, 2, 3, 1))
