"""Checks of a machine before a run: each says what it found and, if that is wrong, what to do."""

import enum
import importlib.metadata
import math
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from packaging.requirements import Requirement

from refvlm_jax.config.errors import ConfigError
from refvlm_jax.config.schema import RunConfig

PYTHONS = ((3, 11), (3, 14))
SMALL_DISK = 20 << 30
SELF_TEST_SECONDS = 10.0
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class State(enum.Enum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    state: State
    found: str
    remedy: str = ""


def examine(config: RunConfig | None, workdir: Path, *, self_test: bool) -> Iterator[Finding]:
    """All checks in order; one that breaks is a failure of its own and stops none of the others."""
    checks: dict[str, Callable[[], Finding]] = {
        "python": check_python,
        "versions": check_versions,
        "libtpu": check_libtpu,
        "devices": check_devices,
        "mesh": partial(check_mesh, config),
        "disk": partial(check_disk, workdir),
        "cache": check_cache,
    }
    if self_test:
        checks["self-test"] = check_self_test
    for name, check in checks.items():
        try:
            yield check()
        except Exception as error:  # whatever is broken here is what the doctor is for
            remedy = "this check itself broke; the message names the cause"
            yield Finding(
                name, State.FAIL, f"{type(error).__name__}: {error}".splitlines()[0], remedy
            )


def check_python() -> Finding:
    """The interpreter is one that the dependencies support."""
    version, (low, high) = sys.version_info[:2], PYTHONS
    found = ".".join(map(str, sys.version_info[:3]))
    if low <= version < high:
        return Finding("python", State.OK, found)
    return Finding("python", State.FAIL, found, "use Python 3.11 or 3.12")


def check_versions() -> Finding:
    """Packages are installed in the versions that ours declares, and jaxlib matches jax."""
    found = {name: _version(name) for name in PACKAGES}
    text = ", ".join(f"{name} {version or 'missing'}" for name, version in found.items())
    if lacking := [name for name, version in found.items() if version is None]:
        return Finding("versions", State.FAIL, text, f"pip install {' '.join(lacking)}")
    for line in importlib.metadata.requires("refvlm_jax") or []:
        wanted = Requirement(line)
        version = found.get(wanted.name)
        if version is not None and not wanted.specifier.contains(version, prereleases=True):
            remedy = f"pip install '{wanted.name}{wanted.specifier}'"
            return Finding("versions", State.FAIL, text, remedy)
    jax, jaxlib = _series(found["jax"]), _series(found["jaxlib"])
    if jax[:3] != jaxlib[:3]:
        remedy = f"pip install 'jaxlib=={found['jax']}', the version of jax"
        return Finding("versions", State.FAIL, text, remedy)
    return Finding("versions", State.OK, text)


def check_libtpu() -> Finding:
    """libtpu, where it is installed, is the one that jax was released with."""
    found, jax = _version("libtpu"), _version("jax")
    if found is None:
        on_tpu = bool(os.environ.get("TPU_WORKER_ID") or Path("/dev/accel0").exists())
        if on_tpu:
            return Finding("libtpu", State.FAIL, "missing on a TPU host", "pip install 'jax[tpu]'")
        return Finding("libtpu", State.OK, "not installed; needed on TPU hosts and for plans only")
    text = f"libtpu {found} with jax {jax}"
    # jax names the libtpu it was released with as a requirement of its extra `tpu`.
    declared = map(Requirement, importlib.metadata.requires("jax") or [])
    wanted = next((r.specifier for r in declared if r.name == "libtpu"), None)
    if wanted is None:
        remedy = "pip install 'jax[tpu]' picks the pair that belongs together"
        return Finding("libtpu", State.WARN, f"{text}; jax does not say which it needs", remedy)
    if not wanted.contains(found, prereleases=True):
        remedy = f"pip install 'libtpu{wanted}', or reinstall both with pip install 'jax[tpu]'"
        return Finding("libtpu", State.FAIL, f"{text}, which needs libtpu{wanted}", remedy)
    return Finding("libtpu", State.OK, text)


def check_devices() -> Finding:
    """An accelerator is there, and it is the one that the machine seems to have."""
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:
        remedy = (
            "unset JAX_PLATFORMS or install the plugin it names: pip install 'jax[tpu]' or "
            "'jax[cuda12]'; another process may also hold the devices"
        )
        return Finding("devices", State.FAIL, str(error).splitlines()[0], remedy)
    kinds = sorted({device.device_kind for device in devices})
    text = f"{len(devices)} x {', '.join(kinds)} on {jax.process_count()} process(es)"
    platform = devices[0].platform
    if platform == "cpu" and shutil.which("nvidia-smi") and not _cpu_asked_for():
        return Finding(
            "devices", State.FAIL, f"{text}, although this machine has an NVIDIA driver",
            "pip install 'jax[cuda12]' in this environment",
        )  # fmt: skip
    if platform == "cpu" and not _cpu_asked_for():
        remedy = "fine for tests and tiny recipes; for more, run on a TPU or GPU host"
        return Finding("devices", State.WARN, text, remedy)
    return Finding("devices", State.OK, text)


def check_mesh(config: RunConfig | None) -> Finding:
    """The configured mesh fits the devices, and the batch fits the mesh."""
    import jax

    from refvlm_jax.mesh.build import batch_sharding, check_rows, data_shard, make_mesh, make_rules

    if config is None:
        return Finding("mesh", State.OK, "no recipe given; --config checks its mesh")
    try:
        mesh, rules = make_mesh(config.mesh), make_rules(config.mesh)
        check_rows(config.data.batch_size, config.train.accumulate, mesh, rules)
        _, parts = data_shard(batch_sharding(mesh, rules), config.data.batch_size)
    except ConfigError as error:
        return Finding("mesh", State.FAIL, str(error), "change the field that the message names")
    shape = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    text = f"{shape}; {config.data.batch_size} rows a step, read in {parts} part(s)"
    if (idle := jax.device_count() - math.prod(mesh.shape.values())) > 0:
        remedy = "choose mesh.preset = fsdp to use them all"
        return Finding("mesh", State.WARN, f"{text}; {idle} device(s) idle", remedy)
    return Finding("mesh", State.OK, text)


def check_disk(workdir: Path) -> Finding:
    """The work folder can be written, renames folders at once, and has room."""
    folder = _existing(workdir.absolute())
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".refvlm_doctor_") as scratch:
            (Path(scratch) / "a" / "b").mkdir(parents=True)
            os.replace(Path(scratch) / "a", Path(scratch) / "c")
            renamed = (Path(scratch) / "c" / "b").is_dir()
    except OSError as error:
        remedy = "choose another --workdir, or give this user the right to write there"
        return Finding("disk", State.FAIL, f"{folder}: {error.strerror}", remedy)
    if not renamed:
        return Finding(
            "disk", State.FAIL, f"{folder}: folders cannot be renamed",
            "checkpoints are committed by renaming; mount a bucket with a hierarchical namespace",
        )  # fmt: skip
    free = shutil.disk_usage(folder).free
    text = f"{free / 2**30:.0f} GiB free in {folder}"
    if free < SMALL_DISK:
        remedy = (
            "a checkpoint takes 12 bytes a trained parameter and 2 a frozen one, ckpt.keep of them "
            "and one being written; free some space or lower ckpt.keep"
        )
        return Finding("disk", State.WARN, text, remedy)
    return Finding("disk", State.OK, text)


def check_cache() -> Finding:
    """Compiled programs can be kept."""
    from refvlm_jax.train.compile_cache import use_compile_cache

    try:
        folder = use_compile_cache()
        probe = folder / f".doctor_{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        remedy = "set REFVLM_CACHE to a folder that can be written, shared by all hosts if possible"
        return Finding("cache", State.FAIL, f"{error.filename}: {error.strerror}", remedy)
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return Finding("cache", State.OK, f"{folder}, {size / 2**20:.0f} MiB of compiled programs")


def check_self_test() -> Finding:
    """A toy run trains on all devices, saves, and repeats its steps from a checkpoint."""
    from refvlm_jax.testing.self_test import self_test

    began = time.perf_counter()
    losses = self_test()
    seconds = time.perf_counter() - began
    text = f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, saved and resumed in {seconds:.1f} s"
    if not all(map(math.isfinite, losses)) or losses[-1] >= losses[0]:
        remedy = (
            "the devices compute wrong numbers: reinstall the driver and jax in matching versions, "
            "and run again with JAX_PLATFORMS=cpu to compare"
        )
        return Finding("self-test", State.FAIL, text, remedy)
    if seconds > SELF_TEST_SECONDS:
        remedy = "usually compilation on a busy machine; a second call uses the compilation cache"
        return Finding("self-test", State.WARN, text, remedy)
    return Finding("self-test", State.OK, text)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _series(version: str | None) -> tuple[int, ...]:
    """The leading numbers of a version: 0.10.2 -> (0, 10, 2)."""
    match = re.match(r"\d+(\.\d+)*", version or "")
    return tuple(map(int, match[0].split("."))) if match else ()


def _cpu_asked_for() -> bool:
    return os.environ.get("JAX_PLATFORMS", "").split(",")[0] == "cpu"


def _existing(path: Path) -> Path:
    """The path or its nearest parent that exists."""
    while not path.exists():
        path = path.parent
    return path
