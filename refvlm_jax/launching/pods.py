"""The machines a launch script can ask for, by the names their vendors use.

`v5e-256` and `v6e-64` count chips, `v4-128` and `v5p-64` count TensorCores (two a chip), as Google
Cloud does; `x2` behind a name asks for two slices. `h100-8x8` is nodes x GPUs.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

from refvlm_jax.config.errors import ConfigError

TPU_HOST_CHIPS = 4


@dataclass(frozen=True, kw_only=True)
class TpuFamily:
    """What one TPU generation is called where."""

    cores: int
    """What the number in a pod's name counts, a chip."""
    gcloud: str
    """Prefix of the accelerator type."""
    runtime: str
    """Software version of its virtual machines."""
    gke: str
    """Node label `cloud.google.com/gke-tpu-accelerator`."""
    dims: int
    """Dimensions of its torus."""
    largest: int
    """Chips of the largest slice."""


FAMILIES = {
    "v4": TpuFamily(cores=2, gcloud="v4", runtime="tpu-ubuntu2204-base", gke="tpu-v4-podslice",
                    dims=3, largest=4096),
    "v5e": TpuFamily(cores=1, gcloud="v5litepod", runtime="v2-alpha-tpuv5-lite",
                     gke="tpu-v5-lite-podslice", dims=2, largest=256),
    "v5p": TpuFamily(cores=2, gcloud="v5p", runtime="v2-alpha-tpuv5", gke="tpu-v5p-slice",
                     dims=3, largest=6144),
    "v6e": TpuFamily(cores=1, gcloud="v6e", runtime="v2-alpha-tpuv6e", gke="tpu-v6e-slice",
                     dims=2, largest=256),
}  # fmt: skip
GPUS = {"a100": "A100", "h100": "H100", "h200": "H200"}


@dataclass(frozen=True, kw_only=True)
class Pod:
    """A set of machines."""

    name: str
    kind: Literal["tpu", "gpu"]
    model: str
    """Key of `FAMILIES` or `GPUS`."""
    slices: int
    """TPU slices joined by the data-centre network; 1 for GPUs."""
    hosts: int
    """Machines of one slice, or GPU nodes."""
    devices: int
    """Chips or GPUs, all slices together."""

    @property
    def devices_per_host(self) -> int:
        """Chips or GPUs of one machine."""
        return self.devices // self.slices // self.hosts

    @property
    def family(self) -> TpuFamily:
        """Names of the TPU generation."""
        return FAMILIES[self.model]

    @property
    def accelerator_type(self) -> str:
        """Accelerator type of one slice for `gcloud`."""
        return f"{self.family.gcloud}-{self.devices // self.slices * self.family.cores}"

    @property
    def topology(self) -> str:
        """Chips of one slice along each dimension, for example `8x8` or `2x4x4`."""
        return "x".join(map(str, topology(self.devices // self.slices, self.family.dims)))


def topology(chips: int, dims: int) -> tuple[int, ...]:
    """The most cubic power-of-two torus with this many chips, shortest dimension first."""
    power = int(math.log2(chips))
    base, longer = divmod(power, dims)
    sides = tuple(2 ** (base + (i >= dims - longer)) for i in range(dims))
    # One host is a 2 x 2 x 1 block, written with its flat dimension last.
    return (2, 2, 1) if dims == 3 and chips == 4 else sides


def parse_pod(name: str) -> Pod:
    """A pod by name.

    Raises:
      ConfigError: unknown machines, or a size that is not sold.
    """
    text = name.lower()
    if match := re.fullmatch(r"(\w+?)-(\d+)(?:x(\d+))?", text):
        model, first, second = match[1], int(match[2]), int(match[3] or 1)
        if model in FAMILIES:
            return _tpu(name, model, first, second)
        if model in GPUS:
            nodes, gpus = (first, second) if match[3] else (1, first)
            if not (nodes >= 1 and 1 <= gpus <= 8):
                raise ConfigError(f"pod {name!r}: a node has 1 to 8 GPUs; write {model}-NODESxGPUS")
            return Pod(
                name=text, kind="gpu", model=model, slices=1, hosts=nodes, devices=nodes * gpus
            )
    known = ", ".join([f"{f}-N" for f in FAMILIES] + [f"{g}-NODESxGPUS" for g in GPUS])
    raise ConfigError(
        f"pod {name!r} is not known; use one of {known}, for example v5e-64 or h100-8x8"
    )


def _tpu(name: str, model: str, size: int, slices: int) -> Pod:
    family = FAMILIES[model]
    chips, rest = divmod(size, family.cores)
    if (
        rest
        or chips < TPU_HOST_CHIPS
        or chips & (chips - 1)
        or chips > family.largest
        or not slices
    ):
        sizes = f"{TPU_HOST_CHIPS * family.cores} times a power of two"
        counted = "TensorCores" if family.cores == 2 else "chips"
        raise ConfigError(
            f"pod {name!r}: the {model} slices launched here have {sizes} {counted}, up to "
            f"{family.largest * family.cores}"
        )
    hosts = chips // TPU_HOST_CHIPS
    return Pod(
        name=name.lower(), kind="tpu", model=model, slices=slices, hosts=hosts,
        devices=chips * slices,
    )  # fmt: skip
