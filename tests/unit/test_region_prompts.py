"""Region prompts: the reference's pooling cell by cell, its quirks, and the spatial variant."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from refvlm_jax.config.model import RegionPromptConfig
from refvlm_jax.models.region_prompts import RegionPromptEncoder

GRID, WIDTH, SIDE = 6, 5, 36
RASTER = RegionPromptConfig(num_patches=9)
SPATIAL = RegionPromptConfig(num_patches=9, pooling="spatial")


def encoder(config: RegionPromptConfig = RASTER) -> RegionPromptEncoder:
    return RegionPromptEncoder(config, WIDTH, GRID, nnx.Rngs(0))


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 3, GRID**2, WIDTH)).astype(np.float32)


def masks_of(*boxes: tuple[int, int, int, int], side: int = SIDE) -> np.ndarray:
    """uint8[2, 3, side, side]: the boxes (y0, y1, x0, x1) in raster order, the rest empty."""
    masks = np.zeros((6, side, side), np.uint8)
    for mask, (y0, y1, x0, x1) in zip(masks, boxes, strict=False):
        mask[y0:y1, x0:x1] = 1
    return masks.reshape(2, 3, side, side)


def pooled(config: RegionPromptConfig, features: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Pooled tokens [B, P, 9, C] without the position code."""
    module = encoder(config)
    tokens = module(jnp.asarray(features), jnp.asarray(masks)) - module.position[...]
    return np.asarray(tokens)[:, :, : config.num_patches]


def test_raster_pooling_is_runs_of_consecutive_cells(features: np.ndarray) -> None:
    masks = masks_of((0, 36, 0, 36), (6, 30, 12, 24), (0, 12, 0, 6), (30, 36, 0, 36))
    found = pooled(RASTER, features, masks)
    # Whole cells of 6 pixels: a cell belongs to the region when its centre does.
    cells = masks[:, :, 3::6, 3::6].reshape(2, 3, -1)
    for b in range(2):
        for p in range(3):
            area = max(cells[b, p].sum(), 1)
            for part in range(9):
                run = range(4 * part, 4 * part + 4)
                want = sum(cells[b, p, i] * features[b, p, i] for i in run) / area
                np.testing.assert_allclose(found[b, p, part], want, atol=1e-6)


@pytest.mark.parametrize("config", [RASTER, SPATIAL])
def test_parts_are_means_of_their_own(config: RegionPromptConfig, features: np.ndarray) -> None:
    masks = masks_of((6, 24, 12, 36), (0, 6, 0, 6))
    shares = pooled(config, features, masks)
    means = pooled(dataclasses.replace(config, part_means=True), features, masks)
    ones = pooled(config, np.ones_like(features), masks)
    filled = ones > 0
    np.testing.assert_allclose(
        means[filled], (shares / np.where(filled, ones, 1))[filled], atol=1e-5
    )
    assert 0 < filled.mean() < 1 and not means[~filled].any()


def test_the_position_code_is_born_as_large_as_asked() -> None:
    small = encoder(dataclasses.replace(SPATIAL, position_init=0.1)).position[...]
    np.testing.assert_allclose(small, 0.1 * encoder(SPATIAL).position[...], rtol=1e-6)


@pytest.mark.parametrize("config", [RASTER, SPATIAL])
def test_parts_add_up_to_the_mean_of_the_region(
    config: RegionPromptConfig, features: np.ndarray
) -> None:
    masks = masks_of((6, 24, 12, 36), (0, 6, 0, 6))
    found = pooled(config, features, masks).sum(2)
    grid = features.reshape(2, 3, GRID, GRID, WIDTH)
    np.testing.assert_allclose(found[0, 0], grid[0, 0, 1:4, 2:6].mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(found[0, 1], grid[0, 1, 0, 0], atol=1e-6)


def test_spatial_pooling_is_a_grid_of_three_by_three(features: np.ndarray) -> None:
    found = pooled(SPATIAL, features, masks_of((0, 36, 0, 36)))[0, 0].reshape(3, 3, WIDTH)
    cells = features[0, 0].reshape(3, 2, 3, 2, WIDTH)
    np.testing.assert_allclose(found, cells.sum((1, 3)) / 36, atol=1e-6)


def test_small_regions_vanish_in_raster_pooling_only(features: np.ndarray) -> None:
    masks = masks_of((6, 7, 12, 13))
    assert np.abs(pooled(RASTER, features, masks)[0, 0]).max() == 0
    kept = pooled(SPATIAL, features, masks)[0, 0].sum(0)
    np.testing.assert_allclose(kept, features[0, 0, 1 * GRID + 2], atol=1e-6)


@pytest.mark.parametrize("side", [36, 40, 7, 3])
def test_spatial_pooling_takes_masks_of_any_size(side: int, features: np.ndarray) -> None:
    """Exactly the cells that share area with the region, by exact integer arithmetic."""
    y, x = side // 3, side - 1
    found = pooled(SPATIAL, features, masks_of((y, y + 1, x, x + 1), side=side))[0, 0].sum(0)
    rows = [g for g in range(GRID) if g * side < (y + 1) * GRID and (g + 1) * side > y * GRID]
    columns = [g for g in range(GRID) if g * side < (x + 1) * GRID and (g + 1) * side > x * GRID]
    cells = features[0, 0].reshape(GRID, GRID, WIDTH)[np.ix_(rows, columns)]
    np.testing.assert_allclose(found, cells.mean((0, 1)), atol=1e-6)


def test_an_empty_mask_is_finite_in_value_and_gradient(features: np.ndarray) -> None:
    module, masks = encoder(), jnp.asarray(masks_of())
    both = jax.jit(jax.value_and_grad(lambda f: module(f, masks).sum()))
    value, grad = both(jnp.asarray(features))
    assert np.isfinite(value) and np.isfinite(grad).all()
    assert np.abs(pooled(RASTER, features, np.asarray(masks))).max() == 0


def test_the_mask_token_is_a_constant(features: np.ndarray) -> None:
    module = encoder()
    masks = jnp.asarray(masks_of((0, 36, 0, 36), (0, 6, 0, 6), (6, 30, 12, 24), (0, 9, 0, 36)))
    tokens = np.asarray(module(jnp.asarray(features), masks) - module.position[...])[:, :, 9]
    kernel, bias = module.mask_token.kernel[...], module.mask_token.bias[...]
    for filled in tokens.reshape(6, -1)[:4]:
        np.testing.assert_allclose(filled, kernel[0] / GRID**2 + bias, atol=1e-6)
    np.testing.assert_allclose(tokens[1, 2], bias, atol=1e-6)


def test_features_may_be_shared_by_the_prompts_of_a_row(features: np.ndarray) -> None:
    module, masks = encoder(), jnp.asarray(masks_of((6, 30, 12, 24), (0, 12, 0, 6)))
    shared = features[:, 0]
    repeated = np.repeat(shared[:, None], 3, axis=1)
    np.testing.assert_allclose(module(shared, masks), module(repeated, masks), atol=1e-6)


def test_token_count_position_code_and_dtype(features: np.ndarray) -> None:
    bare = RegionPromptConfig(num_patches=9, mask_token=False)
    module, masks = encoder(bare), jnp.asarray(masks_of())
    tokens = module(jnp.asarray(features, jnp.bfloat16), masks)
    assert tokens.shape == (2, 3, 9, WIDTH) and tokens.dtype == jnp.bfloat16
    want = module.position[...].astype(jnp.bfloat16)
    np.testing.assert_array_equal(tokens[0, 0], want)
    assert encoder()(jnp.asarray(features), masks).shape == (2, 3, 10, WIDTH)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RegionPromptConfig(num_patches=7), "num_patches=7 does not divide the 36 raster cells"),
        (RegionPromptConfig(num_patches=8, pooling="spatial"), "num_patches=8 must be a square"),
        (RegionPromptConfig(num_patches=49, pooling="spatial"), "at most 36 cells"),
    ],
)
def test_impossible_partitions_are_refused(config: RegionPromptConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder(config)


@pytest.mark.parametrize("shared", [False, True])
def test_strided_convolution_reads_the_weighted_map(features: np.ndarray, shared: bool) -> None:
    """Nine cells of 2 x 2 patches; each is the kernel applied to the weighted patches in it."""
    module = encoder(RegionPromptConfig(num_patches=9, pooling="conv", mask_token=False))
    masks = masks_of((0, 36, 0, 36), (6, 30, 12, 24), (0, 12, 0, 6))
    given = features[:, 0] if shared else features
    tokens = np.asarray(module(jnp.asarray(given), jnp.asarray(masks)) - module.position[...])
    kernel = np.asarray(module.patch.kernel[...])
    cells = masks[:, :, 3::6, 3::6].astype(np.float32)
    for p in range(3):
        grid = (given[0] if shared else given[0, p]).reshape(GRID, GRID, WIDTH)
        weighted = grid * (cells[0, p] / cells[0, p].sum())[..., None]
        for part in range(9):
            y, x = 2 * (part // 3), 2 * (part % 3)
            want = np.einsum("vuc,vuco->o", weighted[y : y + 2, x : x + 2], kernel)
            np.testing.assert_allclose(tokens[0, p, part], want, atol=1e-6)


def test_strided_convolution_with_the_mask_token(features: np.ndarray) -> None:
    config = RegionPromptConfig(num_patches=9, pooling="conv")
    module, masks = encoder(config), jnp.asarray(masks_of((6, 30, 12, 24)))
    tokens = np.asarray(module(jnp.asarray(features), masks) - module.position[...])
    assert tokens.shape == (2, 3, config.tokens, WIDTH) and config.tokens == 10
    constant = module.mask_token.kernel[...][0] / GRID**2 + module.mask_token.bias[...]
    np.testing.assert_allclose(tokens[0, 0, 9], constant, atol=1e-6)
    # An empty region: no features, and the token's bias.
    assert np.abs(tokens[1, 2, :9]).max() < 1e-6


@pytest.mark.parametrize("mask_token", [True, False])
def test_legacy_tokens_are_the_mean_and_the_weights(features: np.ndarray, mask_token: bool) -> None:
    config = RegionPromptConfig(num_patches=1, pooling="legacy", mask_token=mask_token)
    module = RegionPromptEncoder(config, WIDTH, GRID, nnx.Rngs(0), text_width=7)
    masks = masks_of((6, 30, 12, 24), (0, 12, 0, 6))
    tokens = np.asarray(module(jnp.asarray(features), jnp.asarray(masks)))
    assert config.projects and not RASTER.projects
    assert tokens.shape == (2, 3, 1 + mask_token, 7) == (2, 3, config.tokens, 7)
    cells = masks[:, :, 3::6, 3::6].reshape(2, 3, -1)
    for p in range(2):
        weights = cells[0, p] / cells[0, p].sum()
        linear = module.feature
        want = weights @ features[0, p] @ linear.kernel[...] + linear.bias[...]
        np.testing.assert_allclose(tokens[0, p, 0], want, atol=1e-6)
        if mask_token:
            want = weights @ module.mask_token.kernel[...] + module.mask_token.bias[...]
            np.testing.assert_allclose(tokens[0, p, 1], want, atol=1e-6)
    assert np.isfinite(tokens).all()


@pytest.mark.parametrize("pooling", ["conv", "legacy"])
def test_variants_keep_the_dtype_and_are_finite_on_empty_masks(
    pooling: str, features: np.ndarray
) -> None:
    config = RegionPromptConfig(num_patches=1, pooling=pooling)
    module = RegionPromptEncoder(config, WIDTH, GRID, nnx.Rngs(0), text_width=7)

    def total(features: jax.Array) -> jax.Array:
        return module(features, jnp.asarray(masks_of())).astype(jnp.float32).sum()

    tokens, grad = jax.jit(jax.value_and_grad(total))(jnp.asarray(features, jnp.bfloat16))
    assert grad.dtype == jnp.bfloat16 and np.isfinite(tokens) and np.isfinite(grad).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RegionPromptConfig(num_patches=8, pooling="conv"), "square of a divisor of the grid's"),
        (RegionPromptConfig(num_patches=16, pooling="conv"), "divisor of the grid's side 6"),
        (RegionPromptConfig(num_patches=9, pooling="legacy"), "num_patches=9 must be 1"),
        (RegionPromptConfig(num_patches=1, pooling="legacy"), "needs the width of the language"),
    ],
)
def test_impossible_variants_are_refused(config: RegionPromptConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder(config)
