"""A tensor that has not been read yet: shape, dtype, and how to get any part of it."""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import ml_dtypes
import numpy as np

Shape = tuple[int, ...]
Index = tuple[slice, ...]
"""One slice of step 1 with explicit ends for every dimension."""


class ConvertError(ValueError):
    """Weights cannot be converted; the message names the file or tensor and the remedy."""


@dataclass(frozen=True)
class TensorRef:
    """A stored tensor; `read` touches only the parts of its file that an index needs."""

    shape: Shape
    dtype: np.dtype
    reader: Callable[[Index], np.ndarray]

    def read(self, index: Index | None = None) -> np.ndarray:
        """The tensor, or a part of it, in host memory."""
        return self.reader(whole(self.shape) if index is None else index)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


Tensors = Mapping[str, TensorRef]

# Names of the safetensors format.
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def whole(shape: Shape) -> Index:
    """The index of everything."""
    return tuple(slice(0, size) for size in shape)


def normal(index: tuple[slice, ...], shape: Shape) -> Index:
    """`index` with explicit ends, as the rest of this package expects it."""
    return tuple(slice(*s.indices(n)[:2]) for s, n in zip(index, shape, strict=True))


def extent(index: Index) -> Shape:
    """Shape of the indexed part."""
    return tuple(s.stop - s.start for s in index)


def in_memory(array: np.ndarray) -> TensorRef:
    """An array as a reference to itself."""
    return TensorRef(array.shape, array.dtype, lambda index: array[index])


def common_dtype(dtypes: list[np.dtype]) -> np.dtype:
    """The dtype that holds tensors of all these dtypes exactly: their own if it is one."""
    if len(set(dtypes)) == 1:
        return dtypes[0]
    wide = np.dtype(np.float64) if np.dtype(np.float64) in dtypes else np.dtype(np.float32)
    if any(not _is_float(d) for d in dtypes):
        raise ConvertError(
            f"layers of one stack have dtypes {sorted(map(str, set(dtypes)))}, which no float "
            "dtype holds; convert them to one dtype first"
        )
    return wide


def _is_float(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or dtype in (DTYPES["BF16"], DTYPES["F8_E4M3"], DTYPES["F8_E5M2"])


_BLOCK = 256
"""Side of a block in elements."""


def contiguous(x: np.ndarray) -> np.ndarray:
    """A C-ordered copy of a permuted array, made in blocks that fit the cache, on several cores."""
    if x.flags.c_contiguous or x.ndim < 2 or x.size < 1 << 16:
        return np.ascontiguousarray(x)
    out = np.empty(x.shape, x.dtype)

    def copy_rows(start: int) -> None:
        for other in range(0, x.shape[1], _BLOCK):
            part = np.s_[start : start + _BLOCK, other : other + _BLOCK]
            out[part] = x[part]

    # NumPy copies without Python's lock: threads share the work.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(copy_rows, range(0, x.shape[0], _BLOCK)))
    return out
