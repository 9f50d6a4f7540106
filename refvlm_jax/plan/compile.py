"""Compiling for hardware that is not here: described topologies, and what their compilers answer.

Runs in a process of its own (`plan.worker`): libtpu takes a lock, and its variables must be set before
JAX is imported.
"""

import dataclasses
import importlib.util
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from refvlm_jax.plan.flops import scopes
from refvlm_jax.plan.liveness import Tensor
from refvlm_jax.plan.pods import Device, Pod
from refvlm_jax.plan.program import Program

_SCALE = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_PLUGINS = {
    "tpu": ("libtpu", "pip install 'jax[tpu]'"),
    "cuda": ("jax_plugins.xla_cuda12", "pip install 'jax[cuda12]'"),
}


class PlanError(ValueError):
    """A plan cannot be made here; the message carries the remedy."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a compiler says about a program that fits its memory model."""

    peak: int
    """Bytes a device, arguments included."""
    arguments: int
    temporaries: int
    text: str
    """Optimised HLO."""


@dataclasses.dataclass(frozen=True)
class OutOfMemory:
    """The compiler refused the program."""

    needed: int
    """Bytes a device that it asked for; 0 if it does not say."""
    capacity: int
    """Bytes that it had."""
    tensors: tuple[Tensor, ...]
    """The largest allocations, where it lists them."""
    message: str
    """Its first line."""


def described_devices(pod: Pod) -> Sequence[jax.Device]:
    """The devices of a pod, without the pod.

    Raises:
      PlanError: the compiler for this hardware is not installed, or refuses the description.
    """
    device = pod.device
    if device.platform == "cpu":
        if len(jax.devices()) < pod.devices:
            raise PlanError(f"{pod.name} needs {pod.devices} simulated devices in this process")
        return jax.devices()[: pod.devices]
    module, remedy = _PLUGINS[device.platform]
    if not _installed(module):
        raise PlanError(
            f"compiling for {pod.name} needs {module}, which is not installed; run {remedy}, or plan "
            "with --analytic, which needs no compiler"
        )
    try:
        return list(_topology(pod).devices)
    except Exception as error:
        raise PlanError(
            f"{module} does not accept the description of {pod.name} ({pod.describe()}): "
            f"{_first_line(error)}; check that its version is the one that jax {jax.__version__} "
            f"asks for ({remedy}), or plan with --analytic"
        ) from error


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _topology(pod: Pod) -> Any:
    device = pod.device
    if device.platform == "cuda":
        return topologies.get_topology_desc(
            platform="cuda",
            topology_name=device.kind.upper(),
            topology=f"1x{pod.topology[0]}x{pod.topology[1]}",
            target_config=gpu_description(device),
        )
    more: dict[str, Any] = {"num_slices": pod.slices} if pod.slices > 1 else {}
    if device.megacore:
        more["chip_config_name"] = "megacore"
    if pod.devices == 1:
        more["chips_per_host_bounds"] = (1, 1, 1)
    shape = "x".join(map(str, pod.topology))
    return topologies.get_topology_desc(
        platform="tpu", topology_name=f"{device.kind}:{shape}", **more
    )


def gpu_description(device: Device) -> str:
    """XLA's description of a GPU (`GpuTargetConfigProto` as text)."""
    major, minor = device.compute_capability
    fields = {
        "threads_per_block_limit": 1024, "threads_per_warp": 32,
        "shared_memory_per_block": 49152, "shared_memory_per_core": device.shared_per_core,
        "threads_per_core_limit": 2048, "core_count": device.cores, "fpus_per_core": 128,
        "block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 65535, "block_dim_limit_z": 65535,
        "memory_bandwidth": int(device.memory_bandwidth), "l2_cache_size": device.l2_bytes,
        "clock_rate_ghz": device.clock_ghz, "device_memory_size": device.memory,
        "shared_memory_per_block_optin": device.shared_per_block,
        "registers_per_core_limit": 65536, "registers_per_block_limit": 65536,
    }  # fmt: skip
    info = " ".join(f"{name}: {value}" for name, value in fields.items())
    info += f" cuda_compute_capability {{ major: {major} minor: {minor} }}"
    return (
        f'gpu_device_info {{ {info} }}\nplatform_name: "CUDA"\n'
        "dnn_version_info { major: 9 minor: 8 }\nruntime_version { major: 12 minor: 8 patch: 0 }\n"
        f'device_description_str: "{device.name}"\n'
    )


def compile_step(program: Program, pod: Pod) -> Compiled | OutOfMemory:
    """Compiles the step for the pod; running out of memory is an answer, not an error."""
    platform = pod.device.platform
    lowered = program.traced.lower(lowering_platforms=(platform,))
    try:
        compiled = lowered.compile()
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise PlanError(
                f"the compiler for {pod.name} failed: {_first_line(error)}; plan with --analytic, "
                "or with other versions of jax and its plugin"
            ) from error
        return read_out_of_memory(str(error), pod.device.capacity)
    stats = compiled.memory_analysis()
    whole = stats.argument_size_in_bytes + stats.temp_size_in_bytes
    whole += stats.output_size_in_bytes - stats.alias_size_in_bytes
    # The sum overstates: temporaries and results share space. The CPU's peak leaves temporaries out.
    stated = 0 if platform == "cpu" else getattr(stats, "peak_memory_in_bytes", 0)
    peak = stated or whole
    return Compiled(
        peak=peak,
        arguments=stats.argument_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        text=compiled.as_text(),
    )


def read_out_of_memory(message: str, capacity: int) -> OutOfMemory:
    """What a compiler's complaint says: needed and available bytes, and its largest allocations."""
    used = re.search(r"Used ([\d.]+)([BKMGT]?) of ([\d.]+)([BKMGT]?)", message)
    exceeds = re.search(
        r"\(([\d.]+)([BKMGT]?)\) exceeds available \S+ \(([\d.]+)([BKMGT]?)\)", message
    )
    needed = 0
    if found := used or exceeds:
        needed, capacity = _bytes(found[1], found[2]), _bytes(found[3], found[4])
    tensors = [_allocation(block) for block in re.split(r"\n\s*\d+\. Size: ", message)[1:]]
    return OutOfMemory(needed, capacity, tuple(tensors), message.splitlines()[0][:300])


def _allocation(block: str) -> Tensor:
    size = re.match(r"([\d.]+)([BKMGT]?)", block)
    shape = re.search(r"Shape: (\w+)\[([\d,]*)\]", block)
    name = re.search(r'op_name="([^"]*)"', block)
    return Tensor(
        bytes=_bytes(size[1], size[2]) if size else 0,
        shape=tuple(int(n) for n in shape[2].split(",") if n) if shape else (),
        dtype=shape[1] if shape else "",
        scope="/".join(scopes(name[1])) if name else "",
    )


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * _SCALE[unit])


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
