"""Collectives of a compiled program, read from its HLO text: bytes a step, loops multiplied out.

A group of devices is named by the mesh axes along which its members differ, so the report says which
axis pays for what.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

_OPS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8,
}  # fmt: skip
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*-> .*\{\s*$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|async_computation)=%?([\w.\-]+)")
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(_OPS)})(-start)?\(")


_REMAT = re.compile(r"Involuntary full rematerialization[^\n]*?(?:op_name=\"([^\"\n]*)\"|\n|$)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over one set of mesh axes."""

    op: str
    axes: tuple[str, ...]
    size: int
    """Devices in a group."""
    count: int
    """Executions a step."""
    payload: float
    """Bytes a step and device: the full array that is gathered, reduced or scattered."""

    @property
    def moved(self) -> float:
        """Bytes a step that a device receives with the usual ring algorithms."""
        share = (self.size - 1) / self.size
        return self.payload * {"all-reduce": 2 * share, "collective-permute": 1}.get(self.op, share)


@dataclasses.dataclass(frozen=True)
class Collectives:
    """What a program communicates in one execution."""

    ops: tuple[Collective, ...]
    unknown_loops: int
    """Loops around collectives whose length the text does not tell; their bodies count once."""

    def payload(self, op: str) -> float:
        """Bytes a step and device of one kind of collective."""
        return sum(c.payload for c in self.ops if c.op == op)


def collectives(text: str, mesh_shape: Mapping[str, int]) -> Collectives:
    """Reads optimised HLO.

    Args:
      mesh_shape: mesh axes in order with their sizes; partition ids count in that order.
    """
    computations, entry = _computations(text)
    found: dict[tuple[str, tuple[str, ...], int], list[float]] = defaultdict(lambda: [0, 0.0])
    unknown, seen = [0], set[str]()
    _walk(computations, entry, 1, mesh_shape, found, unknown, seen)
    ops = [Collective(*key, int(n), b) for key, (n, b) in found.items()]
    return Collectives(tuple(sorted(ops, key=lambda c: -c.moved)), unknown[0])


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    found: dict[str, list[str]] = {}
    current, entry = "", ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = head[1]
            found[current] = []
            entry = current if line.startswith("ENTRY") else entry
        elif line.startswith("}"):
            current = ""
        elif current:
            found[current].append(line)
    return found, entry


def _walk(
    computations: Mapping[str, Sequence[str]],
    name: str,
    times: int,
    mesh_shape: Mapping[str, int],
    found: dict[tuple[str, tuple[str, ...], int], list[float]],
    unknown: list[int],
    seen: set[str],
) -> None:
    def down(called: str, factor: int = 1) -> None:
        _walk(computations, called, times * factor, mesh_shape, found, unknown, seen)

    lines = computations.get(name, ())
    fused_scatter = any("dynamic-slice" in line for line in lines) and "scatter" in name
    for line in lines:
        channel = _CHANNEL.search(line)
        # TPUs spread one collective over several fusions, which all name its channel.
        if (match := _COLLECTIVE.search(line)) and not (channel and channel[1] in seen):
            seen |= {channel[1]} if channel else set()
            op = match[2]
            axes, size = _axes(line, mesh_shape)
            payload = _payload(op, match[1], bool(match[3]), size)
            # TPUs write a reduce-scatter as a fusion of an all-reduce and a slice of its result.
            op = "reduce-scatter" if op == "all-reduce" and fused_scatter else op
            entry = found[op, axes, size]
            entry[0] += times
            entry[1] += times * payload
        if match := _WHILE.search(line):
            trips = _TRIPS.search(line)
            length = int(trips[1]) if trips else _length(computations.get(match[1], ()))
            before = sum(n for n, _ in found.values())
            down(match[2], length or 1)
            if length is None and sum(n for n, _ in found.values()) > before:
                unknown[0] += 1
        elif match := _BRANCHES.search(line):
            for branch in match[1].split(","):
                down(branch.strip().lstrip("%"))
        elif "async-done(" not in line and "async-update(" not in line:
            for called in _CALLED.findall(line):
                if called != name:
                    down(called)


def _length(condition: Sequence[str]) -> int | None:
    """Iterations of a counting loop: the constant that its condition compares with."""
    constants = {
        m[1]: int(m[2])
        for line in condition
        if (m := re.search(r"%?([\w.\-]+) = [su]32\[\]\S* constant\((\d+)\)", line))
    }
    for line in condition:
        if " compare(" in line or " fusion(" in line:
            for name, value in constants.items():
                if re.search(rf"(?<![\w.-])%?{re.escape(name)}(?![\w.-])", line.split("(", 1)[1]):
                    return value
    return None


def _payload(op: str, result: str, started: bool, size: int) -> float:
    """Bytes of the whole array of a collective, from the types it returns."""
    arrays = [(dtype, shape) for dtype, shape in _ARRAY.findall(result) if dtype in _BYTES]
    if started:
        # Scalars beside them are the state of the transfer.
        arrays = [(dtype, shape) for dtype, shape in arrays if shape] or arrays
    parts = [_nbytes(dtype, shape) for dtype, shape in arrays]
    if not parts:
        return 0.0
    if started and op != "all-reduce":
        # Operands and results stand side by side in what a start returns, halves of equal count.
        half = len(parts) // 2 or len(parts)
        parts = parts[:half] if op == "reduce-scatter" else parts[half : 2 * half] or parts
        return float(sum(parts))
    whole = float(sum(parts))
    return whole * size if op == "reduce-scatter" else whole


def _nbytes(dtype: str, shape: str) -> float:
    return _BYTES[dtype] * math.prod(int(n) for n in shape.split(",") if n)


def _axes(line: str, mesh_shape: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
    """Mesh axes along which the members of a collective's groups differ, and the group's size."""
    group = _first_group(line, math.prod(mesh_shape.values()))
    places = np.array(np.unravel_index(group, tuple(mesh_shape.values())))
    differ = (places != places[:, :1]).any(axis=1)
    axes = tuple(axis for axis, d in zip(mesh_shape, differ, strict=True) if d)
    return axes, len(group)


def _mesh_group(axes: str, along: str) -> list[int]:
    """The group of device 0 in the notation of meshes: `'a'=4,'b'=2` along `'a'` or `'a':(2)2`."""
    sizes = {m[1]: int(m[2]) for m in re.finditer(r"'([^']+)'=(\d+)", axes)}
    strides = dict.fromkeys(sizes, 1)
    stride = 1
    for name in reversed(sizes):
        strides[name], stride = stride, stride * sizes[name]
    group = np.zeros(1, np.int64)
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", along):
        # A part of an axis: `before` outer steps, then `size` of them, then the rest.
        count = int(size or sizes[name])
        step = strides[name] * (sizes[name] // (int(before or 1) * count))
        group = (group[:, None] + np.arange(count) * step).reshape(-1)
    return group.tolist()


def _first_group(line: str, devices: int) -> list[int]:
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        groups, dims = ([int(n) for n in found[i].split(",")] for i in (1, 2))
        ids = np.arange(math.prod(dims)).reshape(dims)
        if found[3]:
            ids = ids.transpose([int(n) for n in found[3].split(",")])
        return ids.reshape(groups)[0].tolist()
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        return _mesh_group(found[1], found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return [int(n) for n in found[1].split(",")]
    if found := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", line):
        return [int(found[1]), int(found[2])]
    return list(range(devices))


def rematerialisations(log: str) -> list[str]:
    """Complaints of XLA's partitioner in a compiler's log: it had to gather arrays to lay them out."""
    names = [match[1] or "" for match in _REMAT.finditer(log)]
    if not names:
        return []
    return [
        f"{len(names)} arrays were laid out by gathering them whole (first in {names[0] or 'the step'}"
        "); constrain them on the way, or choose another preset"
    ]
