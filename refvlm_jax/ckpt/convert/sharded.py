"""Loading weights onto a mesh: each process reads the bytes of its own shards and no others."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from refvlm_jax.ckpt.convert.import_ import plan_import
from refvlm_jax.ckpt.convert.orbax_io import StoredCheckpoint, open_checkpoint
from refvlm_jax.ckpt.convert.reader import open_sources
from refvlm_jax.ckpt.convert.tensors import ConvertError, Index, Shape, normal
from refvlm_jax.ckpt.convert.whole import WholeConfig, read_config

ReadPart = Callable[[Index], np.ndarray]


@dataclass(frozen=True)
class Weights:
    """Weights on disk; no array is read until a part of it is asked for."""

    path: Path
    shapes: Mapping[str, Shape]
    reader: Callable[[str], ReadPart]
    """Name -> what reads a part of that array."""
    config: WholeConfig | None
    """The model they were made with, where that is known."""

    @property
    def tokens(self) -> int | None:
        """Rows of the vocabulary that are tokens, not padding."""
        return self.config.llama.vocab_size if self.config and self.config.llama else None


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
    weights = open_weights(path, config=config, step=step)
    if missing := sorted(shardings.keys() - weights.shapes.keys()):
        raise ConvertError(
            f"{path} has no {missing[0]} ({len(missing)} such arrays); add the source that holds it"
        )
    return {
        name: place_part(weights.shapes[name], sharding, weights.reader(name), dtype)
        for name, sharding in shardings.items()
    }


def place_part(shape: Shape, sharding: Sharding, read: ReadPart, dtype: Any) -> jax.Array:
    """An array of which every process reads the parts that its devices hold."""

    parts: dict[str, np.ndarray] = {}

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        # Devices that hold the same part ask for it one by one; it is read once.
        wanted = normal(index or (), shape)
        if str(wanted) not in parts:
            found = read(wanted)
            parts[str(wanted)] = found if dtype is None else found.astype(dtype)
        return parts[str(wanted)]

    return jax.make_array_from_callback(shape, sharding, part)


def open_weights(path: Path, *, config: Path | None = None, step: int | None = None) -> Weights:
    """A checkpoint of this library, or any PyTorch source that can be imported.

    Raises:
      ConvertError: it is neither, or a file is damaged.
    """
    if path.is_dir() and _is_checkpoint(path):
        return _of_checkpoint(path, open_checkpoint(path, step))
    plan = plan_import(open_sources([path], config))
    rows = {row.name: row for row in plan.rows}

    def reader(name: str) -> ReadPart:
        return lambda index: rows[name].read(plan.tensors, index)

    return Weights(path, plan.shapes, reader, plan.config)


def _is_checkpoint(path: Path) -> bool:
    steps = [path, *path.iterdir(), *(path / "checkpoints").glob("*")]
    return any((step / "meta" / "metadata").is_file() for step in steps)


def _of_checkpoint(path: Path, stored: StoredCheckpoint) -> Weights:
    tree = (stored.meta.get("config") or {}).get("model")
    config = read_config(tree, stored.meta.get("converter") or {}) if tree else None
    shapes = {name: info.shape for name, info in stored.parameters.items()}

    def reader(name: str) -> ReadPart:
        return lambda index: stored.read_part(stored.where(name), name, index)

    return Weights(path, shapes, reader, config)
