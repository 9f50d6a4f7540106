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


def device_checksums(arrays: Mapping[str, Array]) -> dict[str, int]:
    """Checksum of every array, summed on the devices; all arrays share one mesh."""
    if not arrays:
        return {}
    sharding = next(iter(arrays.values())).sharding
    assert isinstance(sharding, NamedSharding)
    whole = NamedSharding(sharding.mesh, PartitionSpec())
    sums = jax.device_get(jax.jit(_all_sums, out_shardings=whole)(dict(arrays)))
    return {name: int(value) for name, value in sums.items()}


def host_checksum(array: np.ndarray) -> int:
    """The same number for an array in host memory."""
    bits = np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")
    # Odd weights keep every element's contribution invertible, so one changed element always shows.
    weights = 2 * np.arange(bits.size, dtype=np.uint32) + np.uint32(1)
    return int(np.sum(bits.astype(np.uint32) * weights, dtype=np.uint32))


def _all_sums(arrays: dict[str, Array]) -> dict[str, UInt32[Array, ""]]:
    return {name: _sum(array) for name, array in arrays.items()}


def _sum(array: Any) -> UInt32[Array, ""]:
    bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"u{array.dtype.itemsize}"))
    index = jnp.zeros(array.shape, jnp.uint32)
    for axis in range(array.ndim):
        stride = np.uint32(math.prod(array.shape[axis + 1 :]) % 2**32)
        index += stride * jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    return jnp.sum(bits.astype(jnp.uint32) * (2 * index + 1), dtype=jnp.uint32)
