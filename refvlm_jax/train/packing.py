"""Small arrays travel together: a few arrays go into a step and come out of it instead of hundreds.

The host pays for every one. A model has hundreds that hold few numbers (norm scales, biases and their
moments), a batch has dozens; outside the program they lie end to end.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Shaped, UInt8

SMALL_BYTES = 16 * 1024
"""Arrays (of a batch: rows of them) up to this size are packed; the devices copy them once more."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """A tree whose small arrays lie end to end."""

    vectors: dict[str, Any]
    """[N] by dtype."""
    others: list[Any]
    """The arrays that are not packed, in the order of the tree."""


class Packing:
    """Where the arrays of one tree lie when packed.

    Packed are arrays that are small and whole on every device; what is spread stays as it is.
    """

    def __init__(self, abstract: Any, small_bytes: int = SMALL_BYTES) -> None:
        """Plans for trees like `abstract`: `jax.ShapeDtypeStruct` leaves with shardings."""
        self._tree: Any  # jax gives its type of trees no methods
        self._leaves, self._tree = jax.tree.flatten(abstract)
        self._small: dict[str, list[int]] = {}
        self._others: list[int] = []
        for index, leaf in enumerate(self._leaves):
            is_small = leaf.size * leaf.dtype.itemsize <= small_bytes
            if is_small and leaf.sharding.is_fully_replicated:
                self._small.setdefault(leaf.dtype.name, []).append(index)
            else:
                self._others.append(index)
        layout = {i: self._leaves[i].sharding for part in self._small.values() for i in part}
        self._join = jax.jit(self._joined, out_shardings=self.shardings.vectors)
        self._split = jax.jit(self._pieces, out_shardings=layout)

    @property
    def shardings(self) -> Packed:
        """The shardings of a packed tree."""
        meshes = {d: self._leaves[part[0]].sharding.mesh for d, part in self._small.items()}
        vectors = {d: NamedSharding(mesh, PartitionSpec()) for d, mesh in meshes.items()}
        return Packed(vectors, [self._leaves[i].sharding for i in self._others])

    def pack(self, tree: Any) -> Packed:
        """Packs a tree of arrays, inside a program or outside; arrays that stay are not copied."""
        leaves = self._tree.flatten_up_to(tree)
        small = {d: [leaves[i] for i in part] for d, part in self._small.items()}
        return Packed(self._join(small), [leaves[i] for i in self._others])

    def unpack(self, packed: Packed) -> Any:
        """The tree again, inside a program or outside; arrays that stay are not copied."""
        others = dict(zip(self._others, packed.others, strict=True))
        found = self._split(packed.vectors) | others
        return self._tree.unflatten(found[i] for i in range(len(self._leaves)))

    def _joined(self, small: Mapping[str, Sequence[Array]]) -> dict[str, Array]:
        # The barriers keep the compiler from growing one loop around hundreds of arrays.
        parts = jax.lax.optimization_barrier(small)
        return {d: jnp.concatenate([x.reshape(-1) for x in part]) for d, part in parts.items()}

    def _pieces(self, vectors: Mapping[str, Array]) -> dict[int, Array]:
        found: dict[int, Array] = {}
        for dtype, part in self._small.items():
            shapes = [self._leaves[i].shape for i in part]
            ends = np.cumsum([math.prod(shape) for shape in shapes])
            pieces = jnp.split(vectors[dtype], ends[:-1].tolist())
            found |= {i: p.reshape(s) for i, p, s in zip(part, pieces, shapes, strict=True)}
        return jax.lax.optimization_barrier(found)


class RowPacking:
    """Where the arrays of batches of one shape lie when packed: the bytes of a row side by side."""

    def __init__(self, batch: Any, small_bytes: int = SMALL_BYTES) -> None:
        """Plans for batches like `batch`: NumPy arrays that all have the same number of rows."""
        self._tree: Any
        leaves, self._tree = jax.tree.flatten(batch)
        self._forms = [(array.shape[1:], array.dtype) for array in leaves]
        packed = [array.nbytes <= small_bytes * len(array) for array in leaves]
        self._small = [index for index, small in enumerate(packed) if small]
        self._others = [index for index, small in enumerate(packed) if not small]

    def pack(self, batch: Any) -> "PackedRows":
        """Packs a batch; arrays that stay are not copied."""
        leaves = self._tree.flatten_up_to(batch)
        small = [np.ascontiguousarray(leaves[i]) for i in self._small]
        columns = [x.reshape(len(x), -1).view(np.uint8) for x in small]
        table = np.concatenate(columns, axis=1) if columns else None
        return PackedRows(table, [leaves[i] for i in self._others], self)

    def unpack(self, rows: "PackedRows") -> Any:
        """The batch again, inside a program."""
        found = dict(zip(self._others, rows.others, strict=True))
        if rows.table is not None:
            forms = [self._forms[i] for i in self._small]
            ends = np.cumsum([math.prod(shape) * dtype.itemsize for shape, dtype in forms])
            columns = jnp.split(rows.table, ends[:-1].tolist(), axis=1)
            for index, column, (shape, dtype) in zip(self._small, columns, forms, strict=True):
                found[index] = _from_bytes(column, dtype).reshape(len(column), *shape)
        found = jax.lax.optimization_barrier(found)
        return self._tree.unflatten(found[i] for i in range(len(self._forms)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedRows:
    """A batch whose small arrays lie side by side."""

    table: Any
    """uint8[B, N]; None where no array is small."""
    others: list[Any]
    """[B, ...] the arrays that are not packed."""
    packing: RowPacking = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Numbers:
    """Scalars of a step by name, fetched in one piece."""

    values: Float[Array, "N"]
    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, scalars: Mapping[str, Float[Array, ""]]) -> "Numbers":
        """Packs float32 scalars, inside a program."""
        return cls(jnp.stack(list(scalars.values())), tuple(scalars))

    def fetch(self) -> dict[str, float]:
        """The numbers on the host; waits for the step that makes them."""
        return dict(zip(self.names, jax.device_get(self.values).tolist(), strict=True))


def _from_bytes(table: UInt8[Array, "B N"], dtype: np.dtype) -> Shaped[Array, "B n"]:
    """Numbers from their bytes, as the host has them."""
    if dtype == np.bool_:
        return table != 0
    parts = table if dtype.itemsize == 1 else table.reshape(len(table), -1, dtype.itemsize)
    return jax.lax.bitcast_convert_type(parts, dtype)
