"""Named hardware: `v5e-64`, `v5p-64x2`, `h100-8x8` to chips, their layout and their speeds."""

import dataclasses
import functools
import math
import re
import tomllib
from pathlib import Path

from refvlm_jax.config.errors import ConfigError

_TABLE = Path(__file__).with_name("devices.toml")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """One accelerator, from `devices.toml`."""

    kind: str
    platform: str
    """`tpu`, `cuda` or `cpu`."""
    memory: int
    """Bytes of a device's memory."""
    flops: float
    """Peak operations a second in bfloat16."""
    memory_bandwidth: float
    """Bytes a second between memory and compute units."""
    link: float
    """Bytes a second, one direction: of one link between chips (TPU), of all NVLinks (GPU)."""
    network: float
    """Bytes a second that one device sends over the data-centre network."""
    source: str
    """Where the numbers come from."""
    reported: tuple[str, ...] = ()
    """Beginnings of the names that JAX gives such devices."""
    naming: str = "chips"
    """What the number in a pod's name counts, `chips` or `cores` (two a chip)."""
    topology_dims: int = 0
    """Dimensions of the mesh or torus of chips; 0 where there is none."""
    wrap: int = 0
    """Size that a dimension must be a multiple of for its links to close into a ring."""
    megacore: bool = False
    """Whether the compiler must be asked to see a chip's two cores as one device."""
    usable: int = 0
    """Bytes a program may use; 0 is all."""
    cores: int = 0
    compute_capability: tuple[int, int] = (0, 0)
    clock_ghz: float = 0.0
    l2_bytes: int = 0
    shared_per_block: int = 0
    shared_per_core: int = 0
    name: str = ""

    @property
    def capacity(self) -> int:
        """Bytes that a program may use."""
        return self.usable or self.memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pod:
    """A described set of devices."""

    name: str
    device: Device
    topology: tuple[int, ...]
    """Chips along each dimension of a slice; (nodes, GPUs a node) for GPUs."""
    slices: int = 1
    """Slices that only the data-centre network joins."""

    @property
    def devices(self) -> int:
        """Devices of all slices."""
        return self.slices * math.prod(self.topology)

    @property
    def local(self) -> int:
        """Devices joined by fast links: of a slice, or of a node."""
        is_gpu = self.device.platform == "cuda"
        return self.topology[-1] if is_gpu else math.prod(self.topology)

    def describe(self) -> str:
        """The layout in words."""
        if self.device.platform == "cuda":
            return f"{self.topology[0]} nodes of {self.topology[1]} {self.device.kind.upper()}"
        shape = "x".join(map(str, self.topology))
        slices = f"{self.slices} slices of " if self.slices > 1 else ""
        return f"{slices}{math.prod(self.topology)} {self.device.kind} chips ({shape})"


@functools.cache
def device_table() -> dict[str, Device]:
    """Every known accelerator by kind."""
    table = tomllib.loads(_TABLE.read_text(encoding="utf-8"))
    return {kind: _device(kind, dict(entry)) for kind, entry in table.items()}


def reported_device(name: str) -> Device | None:
    """The accelerator that JAX calls by this name, `jax.Device.device_kind`; None if it is unknown."""
    found = [
        (len(start), device)
        for device in device_table().values()
        for start in device.reported
        if name.startswith(start)
    ]
    # "TPU v5 lite" begins with "TPU v5" too.
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _device(kind: str, entry: dict[str, object]) -> Device:
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in entry.items()}
    return Device(kind=kind, **fields)  # type: ignore[arg-type]


def parse_pod(name: str) -> Pod:
    """Reads `KIND-NUMBER[xNUMBER]`.

    TPUs: number in Cloud TPU's names (v4 and v5p count TensorCores, v5e and v6e chips), times slices.
    GPUs: nodes times GPUs a node; a single number is GPUs of one node.

    Raises:
      ConfigError: not of that form, unknown kind, or a number that is no slice.
    """
    found = re.fullmatch(r"([a-z]\w*)-(\d+)(?:x(\d+))?", name.strip().lower())
    table = device_table()
    if not found or found[1] not in table:
        raise ConfigError(
            f"pod {name!r} is unknown; expected KIND-NUMBER such as v5e-64, v5p-64x2 or h100-8x8 "
            f"with one of the kinds {', '.join(table)}"
        )
    device, first = table[found[1]], int(found[2])
    second = int(found[3]) if found[3] else None
    if not first or second == 0:
        raise ConfigError(f"pod {name!r} has no devices; use positive numbers")
    if device.platform == "cuda":
        topology = (1, first) if second is None else (first, second)
        return Pod(name=name, device=device, topology=topology)
    if device.platform == "cpu":
        return Pod(name=name, device=device, topology=(first,))
    return Pod(name=name, device=device, topology=_slice(name, device, first), slices=second or 1)


def _slice(name: str, device: Device, number: int) -> tuple[int, ...]:
    """Chips along each dimension of a slice: powers of two, as square as they come."""
    chips, rest = divmod(number, 2) if device.naming == "cores" else (number, 0)
    smallest = 4 if device.naming == "cores" else 1
    if rest or chips < smallest or chips & (chips - 1) or chips == 2:
        sizes = [n for n in (1, 4, 8, 16, 32, 64, 128, 256) if n >= smallest]
        factor = 2 if device.naming == "cores" else 1
        raise ConfigError(
            f"pod {name!r} is no slice of {device.kind}, whose names count {device.naming}; use one "
            f"of {', '.join(f'{device.kind}-{n * factor}' for n in sizes)}"
        )
    exponent, dims = chips.bit_length() - 1, device.topology_dims
    if chips == 4 and dims == 3:
        return (2, 2, 1)
    low, extra = divmod(exponent, dims)
    return tuple(2 ** (low + (index >= dims - extra)) for index in range(dims))
