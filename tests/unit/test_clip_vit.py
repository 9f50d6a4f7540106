"""The vision tower with both stems: shapes, selection, normalisation, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from refvlm_jax.config.model import VisionConfig
from refvlm_jax.models.clip_vit import ClipViT, feature_dims, normalise_images, sine_grid

PATCH = VisionConfig(image_size=24, patch_size=8, width=16, layers=3, heads=2, mlp_dim=24)
CONV = dataclasses.replace(
    PATCH,
    stem="conv",
    stem_channels=(4, 8),
    position="sine",
    class_token=False,
    activation="gelu",
    feature_layer=2,
)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3)).astype(np.uint8)


def test_normalise_images_follows_the_statistics(images: np.ndarray) -> None:
    found = normalise_images(jnp.asarray(images), PATCH)
    want = (images / 255.0 - np.array(PATCH.image_mean)) / np.array(PATCH.image_std)
    np.testing.assert_allclose(found, want, atol=1e-5)
    np.testing.assert_array_equal(normalise_images(found, PATCH), found)


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (PATCH, (3, 3, 3, 3)),
        (CONV, (12, 6, 3, 3)),
        (dataclasses.replace(CONV, position="learned", class_token=True), (12, 6, 3, 3)),
    ],
)
def test_maps_have_the_announced_shapes(
    config: VisionConfig, sizes: tuple[int, ...], images: np.ndarray
) -> None:
    features = ClipViT(config, nnx.Rngs(0))(jnp.asarray(images))
    want = [(2, y, y, c) for y, c in zip(sizes, feature_dims(config), strict=True)]
    assert [m.shape for m in features.maps] == want
    assert features.tokens.shape == (2, config.tokens, config.width)
    assert features.grid == config.grid == 3


@pytest.mark.parametrize("layer", [-2, 2, 0, -1])
def test_tokens_are_the_selected_hidden_state(layer: int, images: np.ndarray) -> None:
    config = dataclasses.replace(PATCH, feature_layer=layer)
    features = ClipViT(config, nnx.Rngs(0))(jnp.asarray(images))
    selected = np.asarray(features.maps[layer])
    np.testing.assert_array_equal(features.tokens, selected.reshape(2, 9, -1))
    others = [np.abs(m - selected).max() for i, m in enumerate(features.maps) if i != layer % 4]
    assert min(others) > 1e-3


def test_a_conv_stem_builds_no_block_after_the_selected_one() -> None:
    for layer, blocks in ((1, 1), (-2, 2), (-1, 3)):
        model = ClipViT(dataclasses.replace(CONV, feature_layer=layer), nnx.Rngs(0))
        assert model.blocks.block.q.kernel[...].shape[0] == blocks


@pytest.mark.parametrize(("config", "cells"), [(PATCH, {(0, 2)}), (CONV, {(0, 9), (1, 9)})])
def test_a_pixel_reaches_the_cells_that_cover_it(
    config: VisionConfig, cells: set[tuple[int, int]]
) -> None:
    """Row 1, column 18: one patch; of the 3x3 windows at stride 2, rows 0 and 1, column 9."""
    images = np.zeros((2, 24, 24, 3), np.float32)
    images[1, 1, 18] = 1.0
    finest = np.asarray(ClipViT(config, nnx.Rngs(0))(jnp.asarray(images)).maps[0])
    changed = np.argwhere(np.abs(finest[0] - finest[1]).max(-1))
    assert {tuple(cell) for cell in changed.tolist()} == cells


def test_pictures_do_not_see_each_other(images: np.ndarray) -> None:
    model = ClipViT(PATCH, nnx.Rngs(0))
    both, alone = model(jnp.asarray(images)), model(jnp.asarray(images[1:]))
    np.testing.assert_allclose(both.tokens[1], alone.tokens[0], atol=1e-5)


def test_the_tower_computes_in_the_asked_dtype(images: np.ndarray) -> None:
    features = ClipViT(CONV, nnx.Rngs(0))(jnp.asarray(images), dtype=jnp.bfloat16)
    assert {m.dtype for m in jax.tree.leaves(features)} == {jnp.dtype(jnp.bfloat16)}


def test_sine_grid_tells_every_cell_apart() -> None:
    code = sine_grid(6, 16)
    assert code.shape == (36, 16) and np.abs(code).max() <= 1
    gaps = np.abs(code[:, None] - code[None]).max(-1) + np.eye(36)
    assert gaps.min() > 0.05


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stem": "conv", "stem_channels": (4,)}, r"vision\.patch_size=8 must be 2\^2"),
        ({"feature_layer": 4}, r"vision\.feature_layer=4 must lie in -4\.\.3"),
        ({"stem": "conv", "stem_channels": (4, 8), "feature_layer": -5}, "feature_layer=-5"),
        ({"position": "sine", "width": 18}, r"vision\.width=18 must be divisible by 4"),
    ],
)
def test_impossible_towers_are_refused(fields: dict, message: str) -> None:
    config = dataclasses.replace(PATCH, **fields)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(ClipViT(config, nnx.Rngs(0)), jnp.zeros((1, 24, 24, 3)))
