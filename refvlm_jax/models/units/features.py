"""Choosing and resizing vision feature maps for a unit decoder."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from refvlm_jax.config.model import RefVLMConfig
from refvlm_jax.models.clip_vit import VisionFeatures, feature_dims

Map = Float[Array, "B y x C"]


def bilinear(x: Map, height: int, width: int) -> Map:
    """Bilinear resize without antialiasing (PyTorch's align_corners=False)."""
    if x.shape[1:3] == (height, width):
        return x
    shape = (x.shape[0], height, width, x.shape[3])
    return jax.image.resize(x, shape, "bilinear", antialias=False)


def nearest(x: Map, height: int, width: int) -> Map:
    """Nearest resize taking cell floor(i * in / out), which jax.image.resize does not."""
    rows = np.arange(height) * x.shape[1] // height
    columns = np.arange(width) * x.shape[2] // width
    return x[:, rows][:, :, columns]


def resize_concat(maps: Sequence[Map], chosen: Sequence[int]) -> Map:
    """The chosen maps at the size of the first, concatenated along channels."""
    picked = multiple_select(maps, chosen)
    height, width = picked[0].shape[1:3]
    return jnp.concatenate([bilinear(x, height, width) for x in picked], axis=-1)


def multiple_select(maps: Sequence[Map], chosen: Sequence[int]) -> list[Map]:
    """The chosen maps, each at its own size."""
    if wrong := [i for i in chosen if not -len(maps) <= i < len(maps)]:
        raise ValueError(f"features {wrong} do not exist; the model has {len(maps)} feature maps")
    return [maps[i] for i in chosen]


def with_tower(vision: VisionFeatures, tower: Sequence[Map]) -> VisionFeatures:
    """Features whose maps are the tower's, fine to coarse, and last the selected hidden state.

    The language model's tokens stay the vision transformer's. `tower_dims` gives the channels.
    """
    tokens, grid = vision.tokens, vision.grid
    coarse = tokens.reshape(tokens.shape[0], grid, grid, tokens.shape[-1])
    return dataclasses.replace(vision, maps=(*tower, coarse))


def with_last(vision: VisionFeatures, last: Map) -> VisionFeatures:
    """Features whose last map is another."""
    return dataclasses.replace(vision, maps=(*vision.maps[:-1], last))


def tower_dims(tower: Sequence[int], vision_width: int) -> tuple[int, ...]:
    """Channels of the maps of `with_tower`."""
    return (*tower, vision_width)


def unit_dims(config: RefVLMConfig) -> tuple[int, ...]:
    """Channels of the maps that a model's unit decoders choose from."""
    if config.tower is not None:
        dims = tower_dims(config.tower.dims, config.vision.width)
    else:
        dims = feature_dims(config.vision)
    return dims if config.adapter is None else (*dims[:-1], config.llama.width)
