"""The ConvNeXt tower: shapes, reach of a pixel, dtype, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from refvlm_jax.config.model import ConvNextConfig
from refvlm_jax.models.clip_vit import resize_images
from refvlm_jax.models.convnext import ConvNext
from refvlm_jax.train.model_def import define

SMALL = ConvNextConfig(image_size=32, depths=(1, 2), dims=(4, 8), layer_scale=1.0)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)


def test_maps_have_the_announced_shapes_and_dtype(images: np.ndarray) -> None:
    maps = ConvNext(SMALL, nnx.Rngs(0))(jnp.asarray(images), dtype=jnp.bfloat16)
    assert [m.shape for m in maps] == [(2, 8, 8, 4), (2, 4, 4, 8)]
    assert {m.dtype for m in maps} == {jnp.dtype(jnp.bfloat16)}


def test_pictures_of_other_sizes_are_brought_to_the_towers(images: np.ndarray) -> None:
    model = ConvNext(SMALL, nnx.Rngs(0))
    wide = np.repeat(np.repeat(images[:1, ::8, ::8], 16, axis=1), 16, axis=2)
    maps = model(jnp.asarray(wide))
    assert [m.shape for m in maps] == [(1, 8, 8, 4), (1, 4, 4, 8)]
    np.testing.assert_allclose(maps[0], model(resize_images(jnp.asarray(wide), 32, "cubic"))[0])


def test_a_pixel_reaches_seven_by_seven_cells_in_a_block(images: np.ndarray) -> None:
    changed = images.copy()
    changed[:, 2, 30] ^= 0x80
    model = ConvNext(SMALL, nnx.Rngs(0))
    first, second = (np.asarray(model(jnp.asarray(x))[0]) for x in (images, changed))
    found = {tuple(c) for c in np.argwhere(np.abs(first - second)[0].max(-1)).tolist()}
    assert found == {(y, x) for y in range(4) for x in range(4, 8)}


def test_blocks_of_a_stage_are_different(images: np.ndarray) -> None:
    kernels = np.asarray(ConvNext(SMALL, nnx.Rngs(0)).stages[1].block.fc1.kernel[...])
    assert kernels.shape == (2, 8, 32) and np.abs(kernels[0] - kernels[1]).max() > 0.01


def test_the_released_trunk_has_its_number_of_parameters() -> None:
    shapes = define(lambda rngs: ConvNext(ConvNextConfig(), rngs)).shapes
    # 196,230,336 with the unused norm of the classification head.
    assert sum(int(np.prod(s)) for s in shapes.values()) == 196_230_336 - 2 * 1536


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": (1,)}, r"tower\.depths=\(1,\) and tower\.dims=\(4, 8\)"),
        ({"image_size": 36}, r"tower\.image_size=36 must be a multiple of 8"),
    ],
)
def test_impossible_towers_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: ConvNext(dataclasses.replace(SMALL, **fields), nnx.Rngs(0)))
