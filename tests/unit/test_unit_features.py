"""Choosing feature maps for a unit decoder, with and without a visual tower."""

import jax.numpy as jnp
import numpy as np
import pytest

from refvlm_jax.models.clip_vit import VisionFeatures
from refvlm_jax.models.units.features import (
    multiple_select,
    resize_concat,
    tower_dims,
    with_tower,
)


@pytest.fixture(scope="module")
def vision() -> VisionFeatures:
    tokens = jnp.arange(2 * 9 * 5, dtype=jnp.float32).reshape(2, 9, 5)
    # The last map is another hidden state than the selected one.
    return VisionFeatures(tokens, (tokens.reshape(2, 3, 3, 5), -tokens.reshape(2, 3, 3, 5)))


def test_a_tower_replaces_the_maps_and_keeps_the_tokens(vision: VisionFeatures) -> None:
    tower = [jnp.zeros((2, 8, 8, 2)), jnp.ones((2, 4, 4, 3))]
    joined = with_tower(vision, tower)
    assert joined.tokens is vision.tokens and joined.grid == 3
    assert tuple(m.shape[-1] for m in joined.maps) == tower_dims((2, 3), 5) == (2, 3, 5)
    np.testing.assert_array_equal(joined.maps[2], vision.maps[0])


def test_selected_maps_keep_their_sizes_and_concatenated_ones_take_the_first(
    vision: VisionFeatures,
) -> None:
    maps = with_tower(vision, [jnp.ones((2, 8, 8, 2))]).maps
    assert [m.shape for m in multiple_select(maps, (1, 0))] == [(2, 3, 3, 5), (2, 8, 8, 2)]
    found = resize_concat(maps, (0, 1))
    assert found.shape == (2, 8, 8, 7)
    # Corners are beyond the outermost cell centres: no interpolation.
    np.testing.assert_allclose(found[:, 0, -1, 2:], maps[1][:, 0, -1], rtol=1e-6)


def test_a_missing_map_is_named(vision: VisionFeatures) -> None:
    with pytest.raises(ValueError, match=r"features \[23\] do not exist; the model has 2"):
        resize_concat(vision.maps, (0, 23))
