"""The process that makes one plan: `python -m refvlm_jax.plan.worker REQUEST ANSWER`.

A process of its own, because the variables below must be set before JAX starts, libtpu holds a lock
while it is loaded, and the memory of a compilation should go when it is done.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from refvlm_jax.config.errors import ConfigError
from refvlm_jax.config.resolve import resolve, to_dict
from refvlm_jax.config.schema import RunConfig
from refvlm_jax.plan.hlo import rematerialisations
from refvlm_jax.plan.pods import Pod, parse_pod

_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # There is no metadata server to ask on a machine without TPUs.
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    # Warnings are read: `plan.lint.rematerialisations`.
    "TF_CPP_MIN_LOG_LEVEL": "1",
}
_UNTUNED = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
"""Tuning kernels needs the GPU itself, and Triton finds no tiles for some products untuned."""


def make_plan(
    config: RunConfig,
    pod: Pod,
    *,
    analytic: bool = False,
    phase: str = "train",
    verbose: bool = False,
) -> dict[str, Any]:
    """Plans in a new process; see `plan.report.plan` for the answer.

    Raises:
      ConfigError: the configuration does not suit the pod, with the remedy.
      ValueError: the plan cannot be made, with the remedy.
    """
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        request.write_text(
            json.dumps(
                {
                    "config": to_dict(config),
                    "pod": pod.name,
                    "analytic": analytic,
                    "phase": phase,
                }
            )
        )
        environment = {**os.environ, **_ENVIRONMENT}
        if pod.device.platform == "cuda":
            flags = environment.get("XLA_FLAGS", "")
            environment["XLA_FLAGS"] = f"{_UNTUNED} {flags}".strip()
        command = [sys.executable, "-m", "refvlm_jax.plan.worker", str(request), str(answer)]
        status, log = _run(command, environment, verbose)
        if not answer.exists():
            lines = log.strip().splitlines()
            raise ValueError(
                f"planning for {pod.name} ended with status {status}: "
                f"{lines[-1] if lines else 'no message'}; run it again with --verbose"
            )
        found = json.loads(answer.read_text())
    if "refused" in found:
        raise ConfigError(found["refused"])
    if "error" in found:
        raise ValueError(found["error"])
    found["warnings"] += rematerialisations(log)
    return found


def _run(command: list[str], environment: dict[str, str], verbose: bool) -> tuple[int, str]:
    """Exit status and everything that was said, which `verbose` passes on at once."""
    lines = []
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if verbose:
            sys.stderr.write(line)
    return process.wait(), "".join(lines)


def main(request: Path, answer: Path) -> None:
    """Makes the plan that `request` asks for and writes it to `answer`."""
    asked = json.loads(request.read_text())
    pod = parse_pod(asked["pod"])
    import jax

    if pod.device.platform == "cpu" and not asked["analytic"]:
        jax.config.update("jax_num_cpu_devices", pod.devices)
    from refvlm_jax.plan.report import plan

    try:
        config = resolve(asked["config"])
        found: dict[str, Any] = plan(config, pod, analytic=asked["analytic"], phase=asked["phase"])
    except ConfigError as error:
        found = {"refused": str(error)}
    except ValueError as error:
        found = {"error": str(error)}
    scratch = answer.with_suffix(".tmp")
    scratch.write_text(json.dumps(found))
    os.replace(scratch, answer)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
