"""Eight simulated devices, a persistent compilation cache and deterministic property tests."""

import gc
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Tests, and the processes they start, compile hundreds of programs and run each a few times: compiling
# takes nearly all of their time.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# What a step of the tiny model compiles much faster with: the older code generator of XLA's fusions,
# and one LLVM module a program instead of dozens, which only help where there are as many cores.
# Only where both are known: XLA ends a process that hands it a flag it does not have.
if version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
        " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )

import jax
import pytest
from hypothesis import settings

from refvlm_jax.train.compile_cache import use_compile_cache

# Both must be set before the first array is made.
jax.config.update("jax_num_cpu_devices", 8)
use_compile_cache()

# Tracing makes millions of objects, and every collection walks all of JAX, PyTorch and transformers.
gc.set_threshold(100_000, 50, 100)

settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")

_CROWDED = 2 * 2**30
"""Growth in resident bytes after which a worker lets compiled programs go: thousands of them exhaust
first the memory maps a process may have, then the machine."""
_kept = 0
"""Resident bytes after the last time; what is freed does not all return to the machine."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests last: their processes have grown too large to keep others' programs.

    The slowest first among them, so that the workers end together.
    """
    minutes: dict[Path, float] = {}
    for item in items:
        if slow := item.get_closest_marker("slow"):
            minutes[item.path] = slow.args[0] if slow.args else 0
    items.sort(key=lambda item: (item.path in minutes, -minutes.get(item.path, 0)))


@pytest.fixture(scope="module", autouse=True)
def _forget_programs() -> Iterator[None]:
    global _kept
    yield
    if _resident() - _kept > _CROWDED:
        jax.clear_caches()
        _kept = _resident()


def _resident() -> int:
    statm = Path("/proc/self/statm")
    pages = int(statm.read_text().split()[1]) if statm.is_file() else 0
    return pages * os.sysconf("SC_PAGESIZE")
