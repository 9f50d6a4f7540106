"""What the pods of `refvlm_jax.plan.pods` are called where they are rented."""

from dataclasses import dataclass
from typing import Literal

from refvlm_jax.config.errors import ConfigError
from refvlm_jax.plan import pods as described

TPU_HOST_CHIPS = 4


@dataclass(frozen=True, kw_only=True)
class TpuFamily:
    """What one TPU generation is called where."""

    gcloud: str
    """Prefix of the accelerator type."""
    runtime: str
    """Software version of its virtual machines."""
    gke: str
    """Node label `cloud.google.com/gke-tpu-accelerator`."""
    largest: int
    """Chips of the largest slice."""


FAMILIES = {
    "v4": TpuFamily(gcloud="v4", runtime="tpu-ubuntu2204-base", gke="tpu-v4-podslice",
                    largest=4096),
    "v5e": TpuFamily(gcloud="v5litepod", runtime="v2-alpha-tpuv5-lite", gke="tpu-v5-lite-podslice",
                     largest=256),
    "v5p": TpuFamily(gcloud="v5p", runtime="v2-alpha-tpuv5", gke="tpu-v5p-slice", largest=6144),
    "v6e": TpuFamily(gcloud="v6e", runtime="v2-alpha-tpuv6e", gke="tpu-v6e-slice", largest=256),
}  # fmt: skip


@dataclass(frozen=True)
class Pod:
    """A described pod as the machines that are started for it."""

    described: described.Pod

    @property
    def name(self) -> str:
        """Its name in lower case."""
        return self.described.name.lower()

    @property
    def kind(self) -> Literal["tpu", "gpu"]:
        """Which kind of device it has."""
        return "tpu" if self.described.device.platform == "tpu" else "gpu"

    @property
    def model(self) -> str:
        """Generation of its devices, such as `v5e` or `h100`."""
        return self.described.device.kind

    @property
    def slices(self) -> int:
        """TPU slices joined by the data-centre network; 1 for GPUs."""
        return self.described.slices

    @property
    def devices(self) -> int:
        """Chips or GPUs, all slices together."""
        return self.described.devices

    @property
    def devices_per_host(self) -> int:
        """Chips or GPUs of one machine."""
        return TPU_HOST_CHIPS if self.kind == "tpu" else self.described.local

    @property
    def hosts(self) -> int:
        """Machines of one slice, or GPU nodes."""
        return self.devices // self.slices // self.devices_per_host

    @property
    def family(self) -> TpuFamily:
        """Names of the TPU generation."""
        return FAMILIES[self.model]

    @property
    def accelerator_type(self) -> str:
        """Accelerator type of one slice for `gcloud`."""
        cores = 2 if self.described.device.naming == "cores" else 1
        return f"{self.family.gcloud}-{self.described.local * cores}"

    @property
    def topology(self) -> str:
        """Chips of one slice along each dimension, for example `8x8` or `2x4x4`."""
        return "x".join(map(str, self.described.topology))


def parse_pod(name: str) -> Pod:
    """A pod by name, see `refvlm_jax.plan.pods.parse_pod`.

    Raises:
      ConfigError: unknown machines, or a size that is not sold.
    """
    pod = Pod(described.parse_pod(name))
    local = pod.described.local
    if pod.described.device.platform == "cpu":
        raise ConfigError(f"pod {name!r} has no accelerators; use --target local")
    if pod.kind == "gpu" and local > 8:
        raise ConfigError(f"pod {name!r}: a node has 1 to 8 GPUs; write {pod.model}-NODESxGPUS")
    if pod.kind == "tpu" and not TPU_HOST_CHIPS <= local <= pod.family.largest:
        raise ConfigError(
            f"pod {name!r}: the {pod.model} slices launched here have {TPU_HOST_CHIPS} to "
            f"{pod.family.largest} chips, and this one {local}"
        )
    return pod
