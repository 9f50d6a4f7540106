"""DETR's sine position embedding."""

import numpy as np
from jaxtyping import Float


def sine_position(
    height: int, width: int, dim: int, cycles: float = 1.0
) -> Float[np.ndarray, "S d"]:
    """Fixed fp32 code of every cell of a height x width map in raster order.

    Half of the channels code the row, half the column, with alternating sines and cosines at
    wavelengths up to 10000; positions run from 1 to n and are scaled to 2 pi times `cycles`, which
    is 1 in DETR (arXiv 2005.12872).
    """
    half = dim // 2
    power = 10000.0 ** (2 * (np.arange(half) // 2) / half)

    def line(size: int) -> np.ndarray:
        angle = (np.arange(1, size + 1) / (size + 1e-6) * 2 * np.pi * cycles)[:, None] / power
        return np.where(np.arange(half) % 2 == 0, np.sin(angle), np.cos(angle))

    y = np.broadcast_to(line(height)[:, None], (height, width, half))
    x = np.broadcast_to(line(width)[None], (height, width, half))
    return np.concatenate([y, x], axis=-1).reshape(-1, dim).astype(np.float32)
