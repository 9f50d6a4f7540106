"""The language of the name tables: rows that tie our dotted names to PyTorch keys, both ways.

A `Row` says which key (or, for stacked layers, which keys) a parameter comes from and which
`Transform` lies between the two layouts. Transforms only move elements, so both directions are exact.
They also say which part of a PyTorch tensor a part of ours needs, which lets a process read the
bytes of its own shards alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from refvlm_jax.ckpt.convert.tensors import (
    ConvertError,
    Index,
    Shape,
    TensorRef,
    Tensors,
    common_dtype,
    contiguous,
    extent,
    whole,
)

Read = Callable[[Index], np.ndarray]


class Transform:
    """A bijection between the elements of a PyTorch tensor and of ours; this one changes nothing."""

    def shape(self, torch: Shape) -> Shape:
        """Our shape of a tensor of PyTorch shape `torch`."""
        return torch

    def torch_shape(self, ours: Shape) -> Shape:
        """The opposite of `shape`."""
        return ours

    def forward(self, x: np.ndarray) -> np.ndarray:
        """From PyTorch's layout to ours; also takes the parts that `cover` asks for."""
        return x

    def inverse(self, y: np.ndarray) -> np.ndarray:
        """From our layout to PyTorch's."""
        return y

    def cover(self, index: Index, torch: Shape) -> tuple[Index, Index]:
        """Part of the PyTorch tensor to read for our `index`, and what to keep after `forward`."""
        return index, whole(extent(index))

    def read(self, read: Read, torch: Shape, index: Index) -> np.ndarray:
        """Our part `index`, from a reader of parts of a PyTorch tensor of shape `torch`."""
        source, rest = self.cover(index, torch)
        return self.forward(read(source))[rest]


@dataclass(frozen=True)
class Transpose(Transform):
    """Our axis i is PyTorch's axis `axes[i]`."""

    axes: tuple[int, ...]

    def shape(self, torch: Shape) -> Shape:  # noqa: D102
        return tuple(torch[a] for a in self.axes)

    def torch_shape(self, ours: Shape) -> Shape:  # noqa: D102
        return tuple(ours[a] for a in np.argsort(self.axes))

    def forward(self, x: np.ndarray) -> np.ndarray:  # noqa: D102
        return x.transpose(self.axes)

    def inverse(self, y: np.ndarray) -> np.ndarray:  # noqa: D102
        return y.transpose(np.argsort(self.axes))

    def cover(self, index: Index, torch: Shape) -> tuple[Index, Index]:  # noqa: D102
        return tuple(index[a] for a in np.argsort(self.axes)), whole(extent(index))


@dataclass(frozen=True)
class Split(Transform):
    """PyTorch's axis `axis` of n * `inner` elements is our two axes n and `inner` (heads)."""

    axis: int
    inner: int

    def shape(self, torch: Shape) -> Shape:  # noqa: D102
        size, a = torch[self.axis], self.axis
        if size % self.inner:
            raise ConvertError(
                f"an axis of {size} elements is no multiple of head size {self.inner}; "
                "the head count of the configuration does not belong to these weights"
            )
        return (*torch[:a], size // self.inner, self.inner, *torch[a + 1 :])

    def torch_shape(self, ours: Shape) -> Shape:  # noqa: D102
        a = self.axis
        return (*ours[:a], ours[a] * ours[a + 1], *ours[a + 2 :])

    def forward(self, x: np.ndarray) -> np.ndarray:  # noqa: D102
        return x.reshape(self.shape(x.shape))

    def inverse(self, y: np.ndarray) -> np.ndarray:  # noqa: D102
        return y.reshape(self.torch_shape(y.shape))

    def cover(self, index: Index, torch: Shape) -> tuple[Index, Index]:  # noqa: D102
        a, heads = self.axis, index[self.axis]
        source = slice(heads.start * self.inner, heads.stop * self.inner)
        rest = list(whole(extent(index)))
        rest[a + 1] = index[a + 1]
        return (*index[:a], source, *index[a + 2 :]), tuple(rest)


@dataclass(frozen=True)
class Squeeze(Transform):
    """PyTorch's axes `axes`, all of size 1, do not exist in ours."""

    axes: tuple[int, ...]

    def shape(self, torch: Shape) -> Shape:  # noqa: D102
        if any(torch[a] != 1 for a in self.axes):
            raise ConvertError(f"a tensor of shape {torch} must have size 1 on axes {self.axes}")
        return tuple(n for a, n in enumerate(torch) if a not in self.axes)

    def torch_shape(self, ours: Shape) -> Shape:  # noqa: D102
        return tuple(np.expand_dims(np.empty(ours, np.bool_), self.axes).shape)

    def forward(self, x: np.ndarray) -> np.ndarray:  # noqa: D102
        return x.reshape(self.shape(x.shape))

    def inverse(self, y: np.ndarray) -> np.ndarray:  # noqa: D102
        return np.expand_dims(y, self.axes)

    def cover(self, index: Index, torch: Shape) -> tuple[Index, Index]:  # noqa: D102
        source = list(index)
        for axis in sorted(self.axes):
            source.insert(axis, slice(0, 1))
        return tuple(source), whole(extent(index))


@dataclass(frozen=True)
class Expand(Transform):
    """A leading axis of size 1 in ours that PyTorch does not have."""

    def shape(self, torch: Shape) -> Shape:  # noqa: D102
        return (1, *torch)

    def torch_shape(self, ours: Shape) -> Shape:  # noqa: D102
        return ours[1:]

    def forward(self, x: np.ndarray) -> np.ndarray:  # noqa: D102
        return x[None]

    def inverse(self, y: np.ndarray) -> np.ndarray:  # noqa: D102
        return y[0]

    def cover(self, index: Index, torch: Shape) -> tuple[Index, Index]:  # noqa: D102
        return index[1:], (index[0], *whole(extent(index[1:])))


@dataclass(frozen=True)
class Pad(Transform):
    """Our axis `axis` is `extra` longer than PyTorch's; what is added holds zeros."""

    axis: int
    extra: int

    def shape(self, torch: Shape) -> Shape:  # noqa: D102
        return tuple(n + self.extra * (a == self.axis) for a, n in enumerate(torch))

    def torch_shape(self, ours: Shape) -> Shape:  # noqa: D102
        return tuple(n - self.extra * (a == self.axis) for a, n in enumerate(ours))

    def forward(self, x: np.ndarray) -> np.ndarray:  # noqa: D102
        return self._longer(x, x.shape[self.axis] + self.extra)

    def inverse(self, y: np.ndarray) -> np.ndarray:  # noqa: D102
        index = list(whole(y.shape))
        index[self.axis] = slice(0, y.shape[self.axis] - self.extra)
        return y[tuple(index)]

    def read(self, read: Read, torch: Shape, index: Index) -> np.ndarray:  # noqa: D102
        wanted, size = index[self.axis], torch[self.axis]
        source = list(index)
        source[self.axis] = slice(min(wanted.start, size), min(wanted.stop, size))
        return self._longer(read(tuple(source)), wanted.stop - wanted.start)

    def _longer(self, x: np.ndarray, size: int) -> np.ndarray:
        if x.shape[self.axis] == size:
            return x
        out = np.zeros((*x.shape[: self.axis], size, *x.shape[self.axis + 1 :]), x.dtype)
        index = list(whole(x.shape))
        out[tuple(index)] = x
        return out


@dataclass(frozen=True)
class Chain(Transform):
    """Transforms one after the other, from PyTorch to ours."""

    parts: tuple[Transform, ...]

    def shape(self, torch: Shape) -> Shape:  # noqa: D102
        for part in self.parts:
            torch = part.shape(torch)
        return torch

    def torch_shape(self, ours: Shape) -> Shape:  # noqa: D102
        for part in reversed(self.parts):
            ours = part.torch_shape(ours)
        return ours

    def forward(self, x: np.ndarray) -> np.ndarray:  # noqa: D102
        for part in self.parts:
            x = part.forward(x)
        return x

    def inverse(self, y: np.ndarray) -> np.ndarray:  # noqa: D102
        for part in reversed(self.parts):
            y = part.inverse(y)
        return y

    def read(self, read: Read, torch: Shape, index: Index) -> np.ndarray:  # noqa: D102
        for part in self.parts:
            read, torch = _after(part, read, torch), part.shape(torch)
        return read(index)


def _after(part: Transform, read: Read, torch: Shape) -> Read:
    return lambda index: part.read(read, torch, index)


KEEP = Transform()
MATRIX = Transpose((1, 0))
"""Linear: W[out, in] -> kernel[in, out]."""
CONV = Transpose((2, 3, 1, 0))
"""Convolution: OIHW -> HWIO; depthwise [C, 1, k, k] -> [k, k, 1, C]."""
CONV1X1 = Chain((Squeeze((2, 3)), MATRIX))
"""A 1x1 convolution that is a linear map here."""


@dataclass(frozen=True)
class Row:
    """One parameter of ours and the PyTorch keys it is made of."""

    name: str
    keys: tuple[str, ...]
    """One key, or one key a layer if `stacked`."""
    transform: Transform = KEEP
    stacked: bool = False
    """The parameter has a leading layer axis, one PyTorch tensor a layer."""
    optional: bool = False
    """Some models lack it."""
    share: tuple[int, int] | None = None
    """(index, count): the parameter is this part of the first axis of every tensor, whose other
    parts belong to other rows of the same keys; queries, keys and values are often stored as one."""

    def shape(self, tensors: Tensors) -> Shape:
        """Our shape.

        Raises:
          ConvertError: the layers of a stack differ, or a tensor does not fit the transform.
        """
        shapes = [tensors[key].shape for key in self.keys]
        for key, shape in zip(self.keys, shapes, strict=True):
            if shape != shapes[0]:
                raise ConvertError(
                    f"{key} has shape {shape}, but {self.keys[0]} has {shapes[0]}; layers of one "
                    "stack must be equal, so the file is damaged or mixed from two models"
                )
        try:
            one = self.transform.shape(self._shared(shapes[0]))
        except (ConvertError, IndexError) as error:
            raise ConvertError(f"{self.keys[0]} of shape {shapes[0]}: {error}") from error
        return (len(self.keys), *one) if self.stacked else one

    def dtype(self, tensors: Tensors) -> np.dtype:
        """The dtype that holds every layer exactly."""
        return common_dtype([tensors[key].dtype for key in self.keys])

    def read(self, tensors: Tensors, index: Index, dtype: np.dtype | None = None) -> np.ndarray:
        """Our part `index`, read from the bytes it needs."""
        if not self.stacked:
            part = self._read(tensors[self.keys[0]], index)
            return contiguous(part).astype(dtype or part.dtype, copy=False)
        dtype = dtype or self.dtype(tensors)
        out = np.empty(extent(index), dtype)
        for place, layer in enumerate(range(index[0].start, index[0].stop)):
            out[place] = contiguous(self._read(tensors[self.keys[layer]], index[1:]))
        return out

    def _read(self, ref: TensorRef, index: Index) -> np.ndarray:
        if self.share is None:
            return self.transform.read(ref.read, ref.shape, index)
        shape = self._shared(ref.shape)
        start = self.share[0] * shape[0]

        def read(index: Index) -> np.ndarray:
            first = slice(index[0].start + start, index[0].stop + start)
            return ref.read((first, *index[1:]))

        return self.transform.read(read, shape, index)

    def _shared(self, torch: Shape) -> Shape:
        """Shape of the part of a PyTorch tensor that is this row's."""
        if self.share is None:
            return torch
        count = self.share[1]
        if torch[0] % count:
            raise ConvertError(f"the first axis must hold {count} equal parts")
        return (torch[0] // count, *torch[1:])

    def torch_shape(self, ours: Shape) -> Shape:
        """Shape of each PyTorch tensor of a parameter of shape `ours`."""
        shape = self.transform.torch_shape(ours[1:] if self.stacked else ours)
        return shape if self.share is None else (shape[0] * self.share[1], *shape[1:])


Rows = list[Row]


def grouped(rows: Sequence[Row]) -> list[Rows]:
    """Rows that share their tensors together, in the order of their parts."""
    found: dict[tuple[str, ...], Rows] = {}
    for one in rows:
        found.setdefault(one.keys, []).append(one)
    return [sorted(group, key=lambda r: r.share or (0, 1)) for group in found.values()]


def split(group: Rows, arrays: Sequence[np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """The PyTorch tensors of a group of rows and their parameters, in the order of the keys."""
    stacks = [a if r.stacked else a[None] for r, a in zip(group, arrays, strict=True)]
    for place, key in enumerate(group[0].keys):
        parts = [r.transform.inverse(s[place]) for r, s in zip(group, stacks, strict=True)]
        yield key, parts[0] if len(parts) == 1 else np.concatenate(parts)


def row(name: str, key: str, transform: Transform = KEEP, *, optional: bool = False) -> Row:
    """A parameter made of one tensor."""
    return Row(name, (key,), transform, optional=optional)


def linear(name: str, key: str, *, bias: bool = True, kernel: Transform = MATRIX) -> Rows:
    """`nn.Linear` at `key`."""
    found = [row(f"{name}.kernel", f"{key}.weight", kernel)]
    return [*found, row(f"{name}.bias", f"{key}.bias")] if bias else found


def conv(name: str, key: str, *, bias: bool = True) -> Rows:
    """`nn.Conv2d` at `key`."""
    return linear(name, key, bias=bias, kernel=CONV)


def norm(name: str, key: str, *, bias: bool = True) -> Rows:
    """Layer, group or RMS normalisation at `key`."""
    found = [row(f"{name}.scale", f"{key}.weight")]
    return [*found, row(f"{name}.bias", f"{key}.bias")] if bias else found


def stack(name: str, layers: int, one: Callable[[int], Rows]) -> Rows:
    """Equal layers under one name with a leading layer axis; `one(i)` is the table of layer i."""
    tables = [one(i) for i in range(layers)]
    return [
        replace(
            first, name=f"{name}.{first.name}", keys=tuple(t[k].keys[0] for t in tables),
            stacked=True,
        )
        for k, first in enumerate(tables[0])
    ]  # fmt: skip


def prefixed(rows: Sequence[Row], ours: str, theirs: str) -> Rows:
    """The table with prefixes (dots included) on both sides."""
    return [
        replace(r, name=f"{ours}{r.name}", keys=tuple(f"{theirs}{k}" for k in r.keys)) for r in rows
    ]
