"""`refvlm convert inspect`: what a checkpoint holds, from its metadata alone."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refvlm_jax.ckpt.convert.orbax_io import open_checkpoint, stored_shardings
from refvlm_jax.ckpt.convert.reader import open_source
from refvlm_jax.ckpt.convert.tensors import DTYPE_NAMES, ConvertError
from refvlm_jax.ckpt.items import ArrayInfo


@dataclass(frozen=True)
class Stored:
    """One array of a checkpoint."""

    item: str
    """`params`, `frozen`, `optimizer`, `run`, `extra`; `weights` for a PyTorch source."""
    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    sharding: str
    """How it was laid out when it was saved; empty if it was not on devices."""


def inspect_path(path: Path, step: int | None = None) -> list[Stored]:
    """Every array of a checkpoint of this library, or of a PyTorch source.

    Raises:
      ConvertError: there is no readable checkpoint.
    """
    try:
        stored = open_checkpoint(path, step) if path.is_dir() else None
    except ConvertError as error:
        try:
            return _of_source(path)
        except ConvertError as other:
            raise error from other
    if stored is None:
        return _of_source(path)
    return [
        entry
        for item, arrays in stored.items.items()
        for entry in _of_item(stored.folder, item, arrays)
    ]


def _of_source(path: Path) -> list[Stored]:
    tensors = open_source(path).tensors
    return [
        Stored("weights", key, ref.shape, DTYPE_NAMES[ref.dtype], ref.nbytes, "")
        for key, ref in tensors.items()
    ]


def _of_item(folder: Path, item: str, arrays: Mapping[str, ArrayInfo]) -> list[Stored]:
    shardings = stored_shardings(folder / item)
    return [
        Stored(item, name, info.shape, info.dtype, _bytes(info), shardings.get(name, ""))
        for name, info in arrays.items()
    ]


def _bytes(info: ArrayInfo) -> int:
    return math.prod(info.shape) * np.dtype(info.dtype).itemsize


def tree_text(entries: Iterable[Stored], depth: int | None = None) -> str:
    """An indented tree with the size of every branch; `depth` folds deeper levels."""
    sizes: dict[tuple[str, ...], int] = defaultdict(int)
    leaves: dict[tuple[str, ...], Stored] = {}
    total = count = 0
    for entry in entries:
        path = (entry.item, *entry.name.split("."))
        leaves[path] = entry
        total, count = total + entry.nbytes, count + 1
        for level in range(1, len(path) + 1):
            sizes[path[:level]] += entry.nbytes
    lines = []
    for path in sorted(sizes):
        if depth is not None and len(path) > depth:
            continue
        text = f"{'  ' * (len(path) - 1)}{path[-1]}"
        detail = f"{_size(sizes[path]):>10}"
        if path in leaves:
            leaf = leaves[path]
            detail += f"  {leaf.dtype}{list(leaf.shape)}  {leaf.sharding}"
        lines.append(f"{text:<48}{detail}".rstrip())
    return "\n".join([*lines, f"{count} arrays, {_size(total)}"])


def as_json(entries: Iterable[Stored]) -> list[dict[str, Any]]:
    """The same as JSON-ready records."""
    return [asdict(entry) for entry in entries]


def _size(count: float) -> str:
    units = ["B", "KiB", "MiB", "GiB"]
    while count >= 1024 and len(units) > 1:
        count /= 1024
        units.pop(0)
    return f"{count:.1f} {units[0]}" if units[0] != "B" else f"{count:.0f} B"
