"""First values of parameters, drawn in few kernels.

Drawn one by one, hundreds of parameters give XLA hundreds of generators to compile before a first step.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np

from refvlm_jax.nn.param import Law, standard

_BLOCK = 256
"""Elements drawn by one key; a parameter takes as many blocks as it needs."""
_ALONE = 2**22
"""Elements above which a parameter is drawn alone, so that only its own sharding bears on it."""


@dataclass(frozen=True)
class Start:
    """How one parameter starts, and how large it is."""

    law: Law
    shape: tuple[int, ...]
    dtype: jnp.dtype = jnp.float32

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)


def draw(key: jax.Array, starts: Mapping[str, Start]) -> dict[str, jax.Array]:
    """Name -> first value. What a parameter gets depends on `key` and its name alone."""
    values = {}
    for name, start in starts.items():
        if start.law.kind == "constant" or start.size > _ALONE:
            own = jax.random.fold_in(key, crc32(name.encode()))
            values[name] = start.law(own, start.shape, start.dtype)
    rest = {name: start for name, start in starts.items() if name not in values}
    for kind in ("normal", "uniform"):
        values |= _together(
            key, kind, {name: start for name, start in rest.items() if start.law.kind == kind}
        )
    return {name: values[name] for name in starts}


def _together(
    key: jax.Array, kind: Literal["normal", "uniform"], starts: Mapping[str, Start]
) -> dict[str, jax.Array]:
    if not starts:
        return {}
    blocks = {name: math.ceil(start.size / _BLOCK) for name, start in starts.items()}
    seeds = [(crc32(name.encode()), k) for name, count in blocks.items() for k in range(count)]
    scales = np.repeat([s.law.scale for s in starts.values()], list(blocks.values()))
    keys = jax.vmap(partial(_fold, key))(jnp.asarray(seeds, jnp.uint32))
    drawn = jax.vmap(lambda k: standard(kind, k, (_BLOCK,), jnp.float32))(keys)
    drawn *= scales.astype(np.float32)[:, None]
    values, first = {}, 0
    for name, start in starts.items():
        own = drawn[first : first + blocks[name]].reshape(-1)[: start.size]
        values[name] = own.reshape(start.shape).astype(start.dtype)
        first += blocks[name]
    return values


def _fold(key: jax.Array, pair: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(key, pair[0]), pair[1])
