"""Checkpoints of this library, written array by array and read array by array.

Arrays are stored uncompressed in chunks of a few megabytes, so that a process restoring a shard
reads little more than its own bytes.
"""

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint import type_handlers

from refvlm_jax.ckpt.checksum import host_checksum
from refvlm_jax.ckpt.convert.files import OneBehind
from refvlm_jax.ckpt.convert.tensors import ConvertError, Index, Shape, whole
from refvlm_jax.ckpt.items import ArrayInfo, CheckpointError
from refvlm_jax.ckpt.manager import (
    SCHEMA_VERSION,
    checkpoints_of,
    quiet_orbax,
    read_meta,
    step_folder,
)

_CHUNK = 16 * 2**20
_PIECE = 256 * 2**20


class Lazy:
    """An array that is produced part by part while it is written."""

    def __init__(self, shape: Shape, dtype: np.dtype, read: Callable[[Index], np.ndarray]):
        self.shape, self.dtype, self.read = shape, dtype, read
        self.checksum = 0
        """Set once written."""


def write_checkpoint(
    folder: Path, items: Mapping[str, Mapping[str, Lazy]], meta: Mapping[str, Any]
) -> None:
    """Writes step 0 of a new checkpoint folder."""
    step = folder / "0"
    sums = {}
    for item, arrays in items.items():
        if arrays:
            _write_item(step / item, arrays)
            sums[item] = {name: array.checksum for name, array in arrays.items()}
    info = {**meta, "schema_version": SCHEMA_VERSION, "step": 0, "checksums": sums}
    (step / "meta").mkdir(parents=True)
    (step / "meta" / "metadata").write_text(json.dumps(info), encoding="utf-8")


def _write_item(path: Path, arrays: Mapping[str, Lazy]) -> None:
    registry = type_handlers.create_type_handler_registry((Lazy, _LazyHandler()))
    with quiet_orbax():
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, type_handler_registry=registry)
        with ocp.Checkpointer(handler) as writer:
            writer.save(path.absolute(), dict(arrays))


class _LazyHandler(type_handlers.TypeHandler):
    """Tells Orbax how to store a `Lazy` array: as it would a NumPy one, a part at a time."""

    def typestr(self) -> str:
        return "np.ndarray"

    async def serialize(self, values: Sequence[Any], infos: Sequence[Any], args: Any = None) -> Any:
        for value, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            _store(value, Path(str(info.parent_dir / info.name)))
        return []

    async def metadata(self, infos: Any) -> Any:
        raise NotImplementedError("arrays are read back with Orbax's own handlers")

    async def deserialize(self, infos: Any, args: Any = None) -> Any:
        raise NotImplementedError("arrays are read back with Orbax's own handlers")


def _store(array: Lazy, path: Path) -> None:
    chunks = _chunks(array.shape, array.dtype.itemsize)
    target = ts.open(
        {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": str(path)},
            "metadata": {
                "shape": list(array.shape),
                "chunks": list(chunks),
                "compressor": None,
            },
            # The reader tells unwritten chunks from zeros.
            "store_data_equal_to_fill_value": True,
        },
        dtype=ts.dtype(array.dtype.name),
        create=True,
        open=True,
    ).result()
    total, done = 0, 0
    with OneBehind() as behind:
        for index in _pieces(array.shape, chunks, array.dtype.itemsize):
            part = array.read(index)
            behind.start(target[index].write, part)
            total = (total + host_checksum(part, start=done)) % 2**32
            done += part.size
    array.checksum = total


def _chunks(shape: Shape, itemsize: int) -> Shape:
    """Chunk sizes: halved from the front until a chunk is small."""
    chunks = [max(1, n) for n in shape]
    for axis in range(len(chunks)):
        while math.prod(chunks) * itemsize > _CHUNK and chunks[axis] > 1:
            chunks[axis] = -(-chunks[axis] // 2)
    return tuple(chunks)


def _pieces(shape: Shape, chunks: Shape, itemsize: int) -> list[Index]:
    """Runs of whole chunks along the first axis, in order."""
    if not shape:
        return [()]
    line = math.prod(shape[1:]) * itemsize
    rows = max(1, _PIECE // max(1, line * chunks[0])) * chunks[0]
    rest = whole(shape[1:])
    return [(slice(a, min(a + rows, shape[0])), *rest) for a in range(0, shape[0], rows)]


@dataclass(frozen=True)
class StoredCheckpoint:
    """One step of a checkpoint; nothing is read until asked for."""

    folder: Path
    meta: Mapping[str, Any]
    items: Mapping[str, Mapping[str, ArrayInfo]]

    def where(self, name: str) -> str:
        """The item (`params` or `frozen`) that holds a parameter."""
        return next(item for item in ("params", "frozen") if name in self.items.get(item, {}))

    @property
    def parameters(self) -> dict[str, ArrayInfo]:
        """All parameters, trained and frozen."""
        return {**self.items.get("params", {}), **self.items.get("frozen", {})}

    def read(self, item: str, name: str) -> np.ndarray:
        """One array, checked against its checksum.

        Raises:
          ConvertError: it cannot be read, or its bits are not those that were saved.
        """
        array = self.read_part(item, name, whole(self.items[item][name].shape))
        expected = self.meta.get("checksums", {}).get(item, {}).get(name)
        if expected is not None and host_checksum(array) != expected:
            raise ConvertError(_damaged(self.folder / item, name, "its checksum differs"))
        return array

    def read_part(self, item: str, name: str, index: Index) -> np.ndarray:
        """Part of an array, unchecked; reads the storage chunks it lies in and no others.

        Raises:
          ConvertError: it cannot be read, or is not what the checkpoint says it is.
        """
        folder, info = self.folder / item, self.items[item][name]
        try:
            stored = _open(folder, name)
            if tuple(stored.shape) != info.shape or stored.dtype.name != info.dtype:
                raise ValueError(f"it is {stored.dtype.name}{list(stored.shape)}")
            return np.asarray(stored[index].read().result())
        except Exception as error:  # every storage layer raises its own types
            raise ConvertError(_damaged(folder, name, error)) from error


_CONTEXT = ts.Context()
"""Shared, so that the index of a many-array store is parsed once."""


def _open(folder: Path, name: str) -> Any:
    return ts.open(_spec(folder, name), open=True, read=True, context=_CONTEXT).result()


def _infos(folder: Path) -> dict[str, ArrayInfo]:
    """Arrays of an item. Orbax's own reader of metadata would start a device."""
    tree = json.loads((folder / "_METADATA").read_text(encoding="utf-8"))["tree_metadata"]
    found = {}
    for entry in tree.values():
        if entry["value_metadata"]["value_type"] in ("jax.Array", "np.ndarray", "scalar"):
            name = ".".join(str(key["key"]) for key in entry["key_metadata"])
            stored = _open(folder, name)
            found[name] = ArrayInfo(tuple(stored.shape), stored.dtype.name)
    return found


def stored_shardings(folder: Path) -> dict[str, str]:
    """Name -> partition specification it was saved with, for arrays that were on a mesh."""
    file = folder / "_sharding"
    if not file.is_file():
        return {}
    found = {}
    for code, text in json.loads(file.read_text(encoding="utf-8")).items():
        spec = json.loads(text).get("partition_spec")
        if spec is not None:
            found[base64.urlsafe_b64decode(code).decode()] = json.dumps(spec).replace('"', "")
    return found


def _spec(folder: Path, name: str) -> dict[str, Any]:
    """Where TensorStore finds an array of an Orbax item."""
    if (folder / "manifest.ocdbt").exists():
        kvstore = {"driver": "ocdbt", "base": f"file://{folder}/", "path": f"{name}/"}
    else:
        kvstore = {"driver": "file", "path": f"{folder / name}/"}
    newer = json.loads((folder / "_METADATA").read_text(encoding="utf-8")).get("use_zarr3")
    return {"driver": "zarr3" if newer else "zarr", "kvstore": kvstore}


def open_checkpoint(path: Path, step: int | None = None) -> StoredCheckpoint:
    """A run's work folder, its checkpoint folder, or one step folder.

    Raises:
      ConvertError: there is no readable checkpoint.
    """
    if not path.is_dir():
        raise ConvertError(f"{path} is no folder; give a checkpoint of this library")
    root = checkpoints_of(path)
    try:
        folder = root if (root / "meta").is_dir() else step_folder(root, step)
        folder = folder.absolute()
        names = [p.name for p in folder.iterdir() if (p / "_METADATA").exists()]
        meta = read_meta(folder)
        return StoredCheckpoint(folder, meta, {item: _infos(folder / item) for item in names})
    except CheckpointError as error:
        raise ConvertError(str(error)) from error
    except Exception as error:
        raise ConvertError(_damaged(path, "its metadata", error)) from error


def _damaged(path: Path, name: str, error: object) -> str:
    why = " ".join(str(error).split())[:160]
    return f"{path}: {name} cannot be read ({why}); the checkpoint is damaged, use another one"
