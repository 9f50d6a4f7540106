"""Choosing and resizing vision feature maps for a unit decoder."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

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
    height, width = maps[chosen[0]].shape[1:3]
    return jnp.concatenate([bilinear(maps[i], height, width) for i in chosen], axis=-1)
