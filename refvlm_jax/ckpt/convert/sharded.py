"""Loading weights onto a mesh: each process reads the bytes of its own shards and no others."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from refvlm_jax.ckpt.convert.import_ import Plan, plan_import
from refvlm_jax.ckpt.convert.orbax_io import StoredCheckpoint, open_checkpoint
from refvlm_jax.ckpt.convert.reader import open_sources
from refvlm_jax.ckpt.convert.tensors import ConvertError, Index, Shape, normal

ReadPart = Callable[[Index], np.ndarray]


def load_sharded(
    path: Path,
    shardings: Mapping[str, Sharding],
    *,
    dtype: Any | None = None,
    config: Path | None = None,
    step: int | None = None,
) -> dict[str, jax.Array]:
    """The arrays named in `shardings`, laid out as it says.

    Args:
      path: a checkpoint of this library, or any PyTorch source that can be imported.
      dtype: of the arrays; None keeps what is stored.
      config: see `import_weights`; only for a PyTorch source.

    Raises:
      ConvertError: an array is missing, or a file is damaged.
    """
    shapes, readers = _open(path, config, step)
    if missing := sorted(shardings.keys() - shapes.keys()):
        raise ConvertError(
            f"{path} has no {missing[0]} ({len(missing)} such arrays); add the source that holds it"
        )
    return {
        name: _place(shapes[name], sharding, readers(name), dtype)
        for name, sharding in shardings.items()
    }


def _place(shape: Shape, sharding: Sharding, read: ReadPart, dtype: Any) -> jax.Array:
    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        found = read(normal(index or (), shape))
        return found if dtype is None else found.astype(dtype)

    return jax.make_array_from_callback(shape, sharding, part)


def _open(
    path: Path, config: Path | None, step: int | None
) -> tuple[dict[str, Shape], Callable[[str], ReadPart]]:
    """Shapes by name, and how to read a part of each array."""
    if path.is_dir() and _is_checkpoint(path):
        stored = open_checkpoint(path, step)
        return {n: info.shape for n, info in stored.parameters.items()}, _of_checkpoint(stored)
    plan = plan_import(open_sources([path], config))
    return plan.shapes, _of_plan(plan)


def _is_checkpoint(path: Path) -> bool:
    steps = [path, *path.iterdir(), *(path / "checkpoints").glob("*")]
    return any((step / "meta" / "metadata").is_file() for step in steps)


def _of_checkpoint(stored: StoredCheckpoint) -> Callable[[str], ReadPart]:
    return lambda name: lambda index: stored.read_part(stored.where(name), name, index)


def _of_plan(plan: Plan) -> Callable[[str], ReadPart]:
    rows = {row.name: row for row in plan.rows}
    return lambda name: lambda index: rows[name].read(plan.tensors, index)
