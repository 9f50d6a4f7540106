"""The safetensors format: headers checked before use, parts read by byte range, files streamed out.

A file is an 8-byte length, a JSON header (name -> dtype, shape, byte range) and the bytes.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from refvlm_jax.ckpt.convert.tensors import (
    DTYPE_NAMES,
    DTYPES,
    ConvertError,
    Index,
    Shape,
    TensorRef,
    extent,
)

_MAX_HEADER = 100 * 2**20


@dataclass(frozen=True)
class SafetensorsFile:
    """The header of a file; the tensors stay on disk until read."""

    tensors: dict[str, TensorRef]
    metadata: dict[str, str]


def open_safetensors(path: Path) -> SafetensorsFile:
    """Reads the header.

    Raises:
      ConvertError: the file is truncated, or its header lies about the bytes that follow.
    """
    try:
        header, start, size = _header(path)
    except (OSError, ValueError, RecursionError) as error:
        raise ConvertError(_damaged(path, error)) from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise ConvertError(_damaged(path, "__metadata__ is not a mapping"))
    tensors: dict[str, TensorRef] = {}
    ranges = []
    for name, entry in header.items():
        try:
            dtype, shape, begin, end = _entry(entry, size)
        except (KeyError, TypeError, ValueError) as error:
            raise ConvertError(_damaged(path, f"tensor {name!r}: {error}")) from error
        ranges.append((begin, end, name))
        tensors[name] = TensorRef(shape, dtype, partial(_read, path, start + begin, shape, dtype))
    previous = 0
    for begin, end, name in sorted(ranges):
        if begin < previous:
            raise ConvertError(_damaged(path, f"tensor {name!r} overlaps another one"))
        previous = max(previous, end)
    return SafetensorsFile(tensors, {str(k): str(v) for k, v in metadata.items()})


@dataclass(frozen=True)
class Entry:
    """A tensor to be written."""

    name: str
    shape: Shape
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsWriter:
    """Writes a file whose tensors arrive one after the other, in the order of `entries`."""

    def __init__(
        self, path: Path, entries: Sequence[Entry], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Writes the header; the tensors follow through `write`."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
        place = 0
        for entry in entries:
            header[entry.name] = {
                "dtype": DTYPE_NAMES[entry.dtype],
                "shape": list(entry.shape),
                "data_offsets": [place, place + entry.nbytes],
            }
            place += entry.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._entries, self._file = list(entries), path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._next = 0

    def write(self, name: str, array: np.ndarray) -> None:
        """Appends the next tensor."""
        entry = self._entries[self._next]
        assert (name, array.shape, array.dtype) == (entry.name, entry.shape, entry.dtype)
        data = np.ascontiguousarray(array)
        self._file.write(data.reshape(-1).view(np.uint8).data)
        self._next += 1

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        """Ends the file and forces it to disk; after an error it is only closed."""
        with self._file:
            if kind is None:
                assert self._next == len(self._entries), "a planned tensor was never written"
                self._file.flush()
                os.fsync(self._file.fileno())


def write_safetensors(
    path: Path, tensors: Iterable[tuple[str, np.ndarray]], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a small file whole."""
    found = list(tensors)
    with SafetensorsWriter(path, [Entry(n, a.shape, a.dtype) for n, a in found], metadata) as file:
        for name, array in found:
            file.write(name, array)


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Parsed header, offset of the first tensor byte, number of tensor bytes."""
    total = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if total < 8 or length > min(total - 8, _MAX_HEADER):
            raise ValueError(f"header of {length} bytes in a file of {total}")
        header = json.loads(file.read(length).decode())
    if not isinstance(header, dict):
        raise ValueError("the header is not a mapping")
    return header, 8 + length, total - 8 - length


def _entry(entry: Mapping[str, Any], size: int) -> tuple[np.dtype, Shape, int, int]:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"dtype {entry['dtype']!r} is not one of {', '.join(DTYPES)}")
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if any(type(n) is not int or n < 0 for n in (*shape, begin, end)):
        raise ValueError("shape and data_offsets must be natural numbers")
    if end > size:
        raise ValueError(f"its bytes end at {end}, the file at {size}")
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{end - begin} bytes cannot hold {entry['dtype']}{list(shape)}")
    return dtype, shape, begin, end


def _read(path: Path, start: int, shape: Shape, dtype: np.dtype, index: Index) -> np.ndarray:
    """Reads the byte ranges that `index` covers; ranges with little between them as one."""
    cut = _last_cut(shape, index)
    if cut is None:
        return _bytes(path, [start], math.prod(shape), dtype).reshape(shape)
    inner = math.prod(shape[cut + 1 :])
    step = shape[cut] * inner
    length = (index[cut].stop - index[cut].start) * inner
    gap = (step - length) * dtype.itemsize
    if cut and gap < _GAP:
        # Whole rows of the axis before, cut in memory; a copy, so that they can be freed.
        rows = _read(
            path, start, shape, dtype, (*index[:cut], slice(0, shape[cut]), *index[cut + 1 :])
        )
        return np.array(rows[(slice(None),) * cut + (index[cut],)])
    outer = np.zeros((), np.int64)
    for axis in range(cut):
        places = np.arange(index[axis].start, index[axis].stop)
        outer = outer[..., None] * shape[axis] + places
    first = outer.reshape(-1) * step + index[cut].start * inner
    starts = [start + int(place) * dtype.itemsize for place in first]
    return _bytes(path, starts, length, dtype).reshape(extent(index))


_GAP = 4096
"""Bytes that are cheaper to read than to skip: storage hands out whole pages anyway."""


def _last_cut(shape: Shape, index: Index) -> int | None:
    """The last axis that is not taken whole."""
    cut = [
        a for a, (s, n) in enumerate(zip(index, shape, strict=True)) if (s.start, s.stop) != (0, n)
    ]
    return cut[-1] if cut else None


def _bytes(path: Path, starts: Sequence[int], count: int, dtype: np.dtype) -> np.ndarray:
    """`count` elements from each offset, one run after the other."""
    array = np.empty((len(starts), count), dtype)
    with path.open("rb", buffering=0) as file:
        for row, start in zip(array, starts, strict=True):
            _fill(file, start, row, path)
    return array


def _fill(file: Any, start: int, row: np.ndarray, path: Path) -> None:
    target, done = row.view(np.uint8).data, 0
    file.seek(start)
    while done < len(target):
        got = file.readinto(target[done:])
        if not got:
            raise ConvertError(_damaged(path, f"it ends {len(target) - done} bytes early"))
        done += got


def _damaged(path: Path, why: object) -> str:
    text = " ".join(str(why).split())
    return f"{path} is no valid safetensors file ({text}); download or export it again"
