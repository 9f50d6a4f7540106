"""From a mesh configuration to devices: the mesh, its rules and the layout of a batch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding

from refvlm_jax.config.errors import ConfigError
from refvlm_jax.config.schema import MeshConfig
from refvlm_jax.mesh.rules import MESH_AXES, PRESETS, ShardingRules


def mesh_shape(config: MeshConfig, devices: int) -> tuple[int, ...]:
    """Axis sizes with -1 filled, for this many devices.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices.
    """
    if config.preset == "single":
        return (1,) * len(MESH_AXES)
    known = math.prod(size for size in config.shape if size != -1)
    fill, rest = divmod(devices, known)
    if rest or (fill != 1 and -1 not in config.shape):
        raise ConfigError(
            f"mesh.shape = {config.shape} ({', '.join(MESH_AXES)}) does not fit {devices} devices; "
            f"the sizes must multiply to {devices}, use -1 for the axis to be filled"
        )
    return tuple(fill if size == -1 else size for size in config.shape)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The device mesh with axes (replica, fsdp, seq, tensor); `single` takes the first device."""
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(config, len(devices))
    types = (AxisType.Auto,) * len(MESH_AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        return Mesh(_across_slices(config, shape, slices, devices), MESH_AXES, axis_types=types)
    return jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=devices[: math.prod(shape)])


def _across_slices(
    config: MeshConfig, shape: tuple[int, ...], slices: int, devices: Sequence[jax.Device]
) -> np.ndarray:
    """Devices of several slices: only `replica`, the slowest axis, may leave a slice."""
    inner, rest = divmod(shape[0], slices)
    if rest or config.preset == "single":
        raise ConfigError(
            f"mesh.shape = {config.shape} leaves {slices} slices along another axis than replica, "
            f"over the slow network; use the preset 'hsdp' with the shape ({slices}, -1, 1, 1)"
        )
    return mesh_utils.create_hybrid_device_mesh(
        (inner, *shape[1:]), (slices, 1, 1, 1), devices=devices
    )


def make_rules(config: MeshConfig) -> ShardingRules:
    """The sharding rules of the configured preset."""
    return PRESETS[config.preset]


def batch_sharding(mesh: Mesh, rules: ShardingRules) -> NamedSharding:
    """Layout of every array of a batch: rows over the `batch` axes, the rest whole."""
    return NamedSharding(mesh, rules.spec(("batch",)))


def data_shard(sharding: NamedSharding, rows: int) -> tuple[int, int]:
    """(index, count): which part of a global batch of `rows` this process reads.

    Processes whose devices hold the same rows, because they differ along `seq` or `tensor` only,
    read the same part.

    Raises:
      ConfigError: the rows of two processes overlap without being the same.
    """
    parts: dict[int, set[int]] = {}
    devices: Mapping[Any, tuple[slice, ...]] = sharding.devices_indices_map((rows,))
    for device, (index, *_) in devices.items():
        parts.setdefault(device.process_index, set()).update(range(rows)[index])
    distinct = sorted({tuple(sorted(part)) for part in parts.values()})
    if sum(map(len, distinct)) != rows:
        raise ConfigError(
            f"mesh {dict(sharding.mesh.shape)} gives processes overlapping rows of a batch; let the "
            "sizes of seq x tensor divide, or be a multiple of, the devices of a process"
        )
    if jax.process_index() not in parts:
        raise ConfigError(
            f"mesh {dict(sharding.mesh.shape)} uses no device of process {jax.process_index()}; choose "
            "a mesh.preset other than 'single' for a run of several processes"
        )
    own = tuple(sorted(parts[jax.process_index()]))
    return distinct.index(own), len(distinct)


def check_rows(batch_size: int, accumulate: int, mesh: Mesh, rules: ShardingRules) -> None:
    """Raises ConfigError unless every device gets the same number of rows of each micro-batch."""
    shards = batch_shards(mesh.shape, rules)
    if batch_size % (accumulate * shards):
        raise ConfigError(
            f"data.batch_size = {batch_size} is not divisible by train.accumulate x batch shards "
            f"= {accumulate} x {shards}; use a multiple of {accumulate * shards}"
        )


def batch_shards(sizes: Mapping[str, int], rules: ShardingRules) -> int:
    """Parts that the rows of a batch are split into, from the size of every mesh axis."""
    return math.prod(sizes[axis] for axis in _axes(rules.batch))


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else entry
