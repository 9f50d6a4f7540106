"""From one configuration to the files that launch it."""

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2

from refvlm_jax.config.errors import ConfigError
from refvlm_jax.config.schema import RunConfig
from refvlm_jax.launching.pods import Pod, parse_pod
from refvlm_jax.launching.xla_flags import FlagSet, flags_of
from refvlm_jax.mesh.build import mesh_shape

Target = Literal["local", "tpu_vm", "gke", "slurm"]
FILES: dict[str, tuple[str, ...]] = {
    "local": ("local.sh",),
    "tpu_vm": ("tpu_vm.sh",),
    "gke": ("jobset.yaml", "xpk.sh"),
    "slurm": ("slurm.sbatch",),
}
"""Target -> files written, each from the template of its name."""
_KIND = {"tpu_vm": "tpu", "gke": "tpu", "slurm": "gpu"}


class LaunchError(ValueError):
    """A launch script is refused; the message says why and what to change."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a launch script needs beside the run configuration."""

    config: RunConfig
    recipe: str
    """Path of the recipe file, as the machines will see it."""
    target: Target
    pod: str | None = None
    """Machines to ask for; local runs have none."""
    overrides: tuple[str, ...] = ()
    """`field=value` changes of the recipe."""
    workdir: str = ""
    """Folder that all hosts share; empty for `runs/<name>`, below the mount in the cloud."""
    processes: int = 1
    """Processes of a local run."""
    devices: int = 1
    """CPU devices of each local process."""
    image: str = ""
    """Container image of a Kubernetes job."""
    bucket: str = ""
    """Cloud Storage bucket mounted on the hosts, without `gs://`."""
    service_account: str = "default"
    """Kubernetes service account of the job's pods."""
    deterministic: bool = False
    """Flags that make a resumed GPU run bit-identical."""
    answer: bool | None = None
    """What the plan said about memory: True fits, None unknown. False is refused."""


def render(launch: Launch) -> dict[str, str]:
    """File name -> text.

    Raises:
      ConfigError: the pod is unknown, or the mesh does not fit its devices.
      LaunchError: the plan says that memory does not suffice, or the target lacks something.
    """
    pod = _pod(launch)
    if pod is not None and launch.answer is False:
        raise LaunchError(
            f"{launch.recipe} does not fit the memory of {pod.name}; `refvlm plan --config "
            f"{launch.recipe} --pod {pod.name} --search` proposes changes"
        )
    devices = pod.devices if pod else launch.processes * launch.devices
    mesh = mesh_shape(launch.config.mesh, devices)
    if pod is not None and mesh[0] % pod.slices:
        raise LaunchError(
            f"mesh.shape gives the replica axis {mesh[0]} on {pod.name} with {pod.slices} slices; "
            f"make it {pod.slices}, so that only gradients cross the network between slices"
        )
    values = _values(launch, pod, mesh)
    environment = _environment()
    return {
        name: environment.get_template(f"{name}.j2").render(values) for name in FILES[launch.target]
    }


def write(files: dict[str, str], out: Path) -> list[Path]:
    """Writes rendered files, each at once as a whole; scripts become executable."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in files.items():
        path, scratch = out / name, out / f".{name}.tmp"
        scratch.write_text(text, encoding="utf-8")
        if name.endswith((".sh", ".sbatch")):
            scratch.chmod(0o755)
        os.replace(scratch, path)
        written.append(path)
    return written


def _pod(launch: Launch) -> Pod | None:
    if launch.target == "local":
        return None
    if launch.pod is None:
        raise LaunchError(f"target {launch.target} needs --pod, for example v5e-64 or h100-8x8")
    pod = parse_pod(launch.pod)
    if (wanted := _KIND[launch.target]) != pod.kind:
        others = sorted(t for t, kind in _KIND.items() if kind == pod.kind)
        raise LaunchError(
            f"target {launch.target} launches {wanted.upper()}s and {pod.name} has "
            f"{pod.kind.upper()}s; use --target {' or '.join(others)}"
        )
    if launch.target == "gke" and not (launch.image and launch.bucket):
        raise LaunchError(
            "target gke needs --image (build it from launch/Dockerfile) and --bucket (a bucket with "
            "a hierarchical namespace, mounted as the shared folder)"
        )
    return pod


def _values(launch: Launch, pod: Pod | None, mesh: tuple[int, ...]) -> dict[str, Any]:
    """What the templates may name."""
    name = re.sub(r"[^a-z0-9-]+", "-", launch.config.name.lower()).strip("-") or "run"
    root = "" if launch.target in ("local", "slurm") else "/mnt/shared/"
    workdir = launch.workdir or f"{root}runs/{launch.config.name}"
    command = ["refvlm", "train", "--config", launch.recipe, "--workdir", workdir]
    return {
        "launch": launch,
        "name": name,
        "pod": pod,
        "mesh": dict(zip(("replica", "fsdp", "seq", "tensor"), mesh, strict=True)),
        "flags": flags_of(pod, deterministic=launch.deterministic) if pod else FlagSet("", ()),
        "workdir": workdir,
        "train": shlex.join(command),
        "overrides": shlex.join(launch.overrides),
        "memory": "fits" if launch.answer else "not checked",
    }


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("refvlm_jax.launching", "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # Shell and YAML: values are quoted by the filters below. `inner` is for text that a script
        # holds in double quotes.
        autoescape=False,
    )
    environment.filters["sh"] = lambda value: shlex.quote(str(value))
    environment.filters["inner"] = lambda value: re.sub(r'([\\"$`])', r"\\\1", str(value))
    environment.filters["yaml"] = _yaml
    return environment


def _yaml(value: object) -> str:
    """A double-quoted YAML scalar."""
    text = str(value)
    if not text.isprintable():
        raise ConfigError(f"{text!r} cannot be written into a launch file: it is not printable")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
