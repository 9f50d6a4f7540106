"""Position-sensitive sums of array bits: they find damage that storage lets through.

Integer addition modulo 2**32 has no order, so the sum of an array does not depend on how it is
sharded, and it is computed where the array lives.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, UInt32

_BLOCK = 1 << 20


def device_checksums(arrays: Mapping[str, Array]) -> dict[str, int]:
    """Checksum of every array, summed on the devices; all arrays share one mesh."""
    if not arrays:
        return {}
    sharding = next(iter(arrays.values())).sharding
    assert isinstance(sharding, NamedSharding)
    whole = NamedSharding(sharding.mesh, PartitionSpec())
    sums = jax.device_get(jax.jit(_all_sums, out_shardings=whole)(dict(arrays)))
    return {name: int(value) for name, value in sums.items()}


def host_checksum(array: np.ndarray, start: int = 0) -> int:
    """The same number for an array in host memory, in blocks so that no large copy is made.

    Args:
      start: place of the first element, for a part of an array: parts' sums add up modulo 2**32.
    """
    bits = np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")
    total = 0
    for first in range(0, bits.size, _BLOCK):
        block = bits[first : first + _BLOCK].astype(np.uint32)
        # Odd weights keep every element's contribution invertible, so one changed element always
        # shows.
        offset = np.uint32((2 * (start + first) + 1) % 2**32)
        weights = 2 * np.arange(block.size, dtype=np.uint32) + offset
        total += int(np.sum(block * weights, dtype=np.uint32))
    return total % 2**32


def _all_sums(arrays: dict[str, Array]) -> dict[str, UInt32[Array, ""]]:
    return {name: _sum(array) for name, array in arrays.items()}


def _sum(array: Any) -> UInt32[Array, ""]:
    bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"u{array.dtype.itemsize}"))
    index = jnp.zeros(array.shape, jnp.uint32)
    for axis in range(array.ndim):
        stride = np.uint32(math.prod(array.shape[axis + 1 :]) % 2**32)
        index += stride * jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    return jnp.sum(bits.astype(jnp.uint32) * (2 * index + 1), dtype=jnp.uint32)
