"""The answer to `refvlm plan` as plain data: every number with its unit and how it was found."""

import importlib.metadata
import resource
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from refvlm_jax.config.resolve import fingerprint
from refvlm_jax.config.schema import RunConfig
from refvlm_jax.plan.analytic import Estimate, estimate
from refvlm_jax.plan.compile import OutOfMemory, compile_step, described_devices
from refvlm_jax.plan.flops import Flops, count_flops
from refvlm_jax.plan.generation import Phase, serving, trace_generation
from refvlm_jax.plan.hlo import collectives
from refvlm_jax.plan.lint import gathers, whole_parameters
from refvlm_jax.plan.liveness import Tensor
from refvlm_jax.plan.pods import Pod
from refvlm_jax.plan.program import plain_attention, trace_step
from refvlm_jax.plan.roofline import Roofline, communication

ASSUMED_MFU = 0.4
"""Utilisation that well-kept training of this size reaches; for the likely duration."""
LISTED = 12
"""Tensors that a report names."""


def plan(
    config: RunConfig,
    pod: Pod,
    *,
    analytic: bool = False,
    guess: Estimate | None = None,
    phase: Phase = "train",
) -> dict[str, Any]:
    """Plans a run on a pod.

    Args:
      phase: a training step, reading `eval.batch_size` prompts of `data.seq_len` positions, or
        writing one token of each answer.
      analytic: estimates everything from the step's equations, without the hardware's compiler.
      guess: the run's estimate for so many devices, where it was made before.

    Raises:
      ConfigError: the configuration cannot run on so many devices.
      PlanError: the compiler is missing or fails.
    """
    began, spent = time.perf_counter(), time.process_time()
    # First, so that a missing compiler is said at once.
    devices = None if analytic else described_devices(pod)
    guess = guess or estimate(config, pod.devices, phase)
    if devices is None:
        found = _analytic(config, pod, guess, phase)
    else:
        found = _compiled(config, pod, guess, devices, phase)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    head = {
        "config": config.name,
        "fingerprint": fingerprint(config),
        "phase": phase,
        "pod": pod.name,
        "layout": pod.describe(),
        "devices": pod.devices,
        "device_source": pod.device.source,
        "method": "analytic" if analytic else "compiled",
        "versions": _versions(pod),
    }
    cost = {
        "wall": _value(time.perf_counter() - began, "s", "clock of the planning process"),
        "cpu": _value(time.process_time() - spent, "s", "processor time of all its threads"),
        "host_memory": _value(
            usage.ru_maxrss * 1024, "bytes", "largest resident size of the planning process"
        ),
    }
    return {**head, **found, "cost": cost}


def _analytic(config: RunConfig, pod: Pod, guess: Estimate, phase: Phase) -> dict[str, Any]:
    capacity, peak = pod.device.capacity, guess.peak
    how = "state, and the liveness of the values in the step's jaxpr at one device's sizes"
    memory = _memory(pod, guess, peak, how)
    roofline = _roofline(pod, guess, guess.flops.total, guess.flops.model, None)
    return {
        "fits": peak <= capacity,
        "verdict": _verdict(peak, capacity, guess.activations.tensors),
        "mesh": _mesh(config, pod),
        "memory": memory,
        "largest": _largest(guess.activations.tensors),
        "flops": _flops(guess.flops, 1),
        "collectives": None,
        "time": _time(config, roofline, with_links=False),
        "data": _data(config, roofline, phase),
        "warnings": [],
    }


def _compiled(
    config: RunConfig, pod: Pod, guess: Estimate, devices: Sequence[Any], phase: Phase
) -> dict[str, Any]:
    asked = config.model.llama.attention
    # cuDNN's kernel is only there where its GPU is, Splash only on TPUs.
    if asked != {"tpu": "splash"}.get(pod.device.platform):
        config = plain_attention(config)
    if phase == "train":
        program = trace_step(config, devices)
    else:
        program = trace_generation(serving(config, len(devices)), devices, phase)
    flops = count_flops(program.jaxpr)
    answer = compile_step(program, pod)
    shape = dict(program.mesh.shape)
    used = program.mesh.size
    total, model = flops.total / used, flops.model / used
    if isinstance(answer, OutOfMemory):
        needed = answer.needed or guess.peak
        how = "what the compiler asked for" if answer.needed else "estimated; the compiler refused"
        tensors = answer.tensors or guess.activations.tensors
        return {
            "fits": False,
            "verdict": _verdict(needed, answer.capacity, tensors, refused=True),
            "mesh": shape,
            "memory": _memory(pod, guess, needed, how),
            "largest": _largest(tensors),
            "compiler_message": answer.message,
            "flops": _flops(flops, used),
            "collectives": None,
            "time": None,
            "data": None,
            "warnings": whole_parameters(program),
        }
    found = collectives(answer.text, shape)
    seconds = communication(found, pod, shape)
    roofline = _roofline(pod, guess, total, model, seconds)
    how = "memory analysis of the compiled program: its stated peak, or arguments + temporaries"
    return {
        "fits": answer.peak <= pod.device.capacity,
        "verdict": _verdict(answer.peak, pod.device.capacity, guess.activations.tensors),
        "mesh": shape,
        "memory": _memory(pod, guess, answer.peak, how)
        | {"estimate": _value(guess.peak, "bytes", "what --analytic says, for comparison")},
        "largest": _largest(guess.activations.tensors),
        "flops": _flops(flops, used),
        "collectives": {
            "how": "read from the optimised HLO, loops multiplied by their length; an axis is named "
            "where the members of a group differ; moved = received by a device with ring algorithms",
            "unknown_loops": found.unknown_loops,
            "ops": [
                {
                    "op": c.op, "axes": list(c.axes), "group": c.size, "count": c.count,
                    "payload_bytes": c.payload, "moved_bytes": c.moved,
                }
                for c in found.ops
            ],
        },
        "time": _time(config, roofline, with_links=True),
        "data": _data(config, roofline, phase),
        "warnings": whole_parameters(program)
        + (gathers(program, found) if phase == "train" else [])
        + _replaced(asked, config),
    }  # fmt: skip


def _replaced(asked: str, config: RunConfig) -> list[str]:
    used = config.model.llama.attention
    if asked == used:
        return []
    return [
        f"planned with model.llama.attention = {used!r} in blocks: the kernel of {asked!r} cannot be "
        "compiled here; it holds no scores, so memory is bounded by this"
    ]


def _value(value: float, unit: str, how: str) -> dict[str, Any]:
    return {"value": value, "unit": unit, "how": how}


def _verdict(
    peak: float, capacity: float, tensors: Sequence[Tensor], *, refused: bool = False
) -> str:
    if peak <= capacity and not refused:
        return f"fits: {_gib(peak)} of {_gib(capacity)} a device"
    names = "; ".join(
        f"{_gib(t.bytes)} {t.dtype}{list(t.shape)} in {t.scope or 'the step'}" for t in tensors[:3]
    )
    return f"does not fit: {_gib(peak)} of {_gib(capacity)} a device; the largest tensors: {names}"


def _gib(value: float) -> str:
    return f"{value / 2**30:.2f} GiB"


def _memory(pod: Pod, guess: Estimate, peak: float, how: str) -> dict[str, Any]:
    state = guess.state
    exact = "shapes and shardings of the run's own state"
    modules: dict[str, float] = defaultdict(float)
    for tensor in guess.activations.tensors:
        modules[tensor.scope.split("/")[0] or "gradients and update"] += tensor.bytes
    return {
        "capacity": _value(pod.device.capacity, "bytes", "devices.toml"),
        "peak": _value(peak, "bytes", how),
        "params": _value(state.params, "bytes", f"trained parameters: {exact}"),
        "frozen": _value(state.frozen, "bytes", f"frozen parameters: {exact}"),
        "optimizer": _value(state.optimizer, "bytes", f"optimiser: {exact}"),
        "batch": _value(state.batch, "bytes", "one global batch split over the batch axes"),
        "cache": _value(
            state.cache, "bytes", "keys and values of generation, shapes and shardings"
        ),
        "activations": _value(
            max(peak - state.total, 0), "bytes", "peak less state: activations, gradients, buffers"
        ),
        "by_module": {
            "how": "values alive at the estimated peak, by the outermost named scope that made them",
            "bytes": dict(sorted(modules.items(), key=lambda item: -item[1])),
        },
    }


def _largest(tensors: Sequence[Tensor]) -> list[dict[str, Any]]:
    return [
        {"bytes": t.bytes, "shape": list(t.shape), "dtype": t.dtype, "scope": t.scope}
        for t in sorted(tensors, key=lambda t: -t.bytes)[:LISTED]
    ]


def _flops(counted: Flops, devices: int) -> dict[str, Any]:
    """What is counted on so many devices together, a device."""
    how = "products and convolutions of the step's jaxpr, dead code left out, scans times length"
    return {
        "hardware": _value(
            counted.total / devices, "FLOP/device/step", f"{how}, recomputation included"
        ),
        "model": _value(
            counted.model / devices, "FLOP/device/step", f"{how}, recomputation left out"
        ),
        "by_module": {m: n / devices for m, n in counted.by_module.items()},
        "unknown_loops": counted.unknown_loops,
    }


def _roofline(
    pod: Pod, guess: Estimate, total: float, model: float, seconds: dict[str, float] | None
) -> Roofline:
    device, state = pod.device, guess.state
    moved = 2 * (state.params + state.optimizer) + state.frozen + state.batch + state.cache
    return Roofline(
        compute=total / device.flops,
        memory=(moved + guess.flops.product_bytes) / device.memory_bandwidth,
        links=(seconds or {}).get("links", 0.0),
        network=(seconds or {}).get("network", 0.0),
        model_flops=model,
        peak_flops=device.flops,
    )


def _time(config: RunConfig, roofline: Roofline, *, with_links: bool) -> dict[str, Any]:
    seen = "collectives' moved bytes" if with_links else "not known without a compiler, taken as 0"
    return {
        "compute": _value(roofline.compute, "s", "hardware FLOPs at the device's bf16 peak"),
        "memory": _value(
            roofline.memory,
            "s",
            "state read and written, operands and results of every product once",
        ),
        "links": _value(roofline.links, "s", f"{seen} inside a slice or node over its link speed"),
        "network": _value(roofline.network, "s", f"{seen} between slices or nodes"),
        "step_bound": _value(roofline.overlapped, "s", "the largest of the four: all overlaps"),
        "step_serial": _value(roofline.serial, "s", "communication that hides behind nothing"),
        "mfu_bound": _value(
            roofline.mfu(roofline.overlapped), "", "model FLOPs / (peak x step_bound)"
        ),
        "mfu_serial": _value(roofline.mfu(roofline.serial), "", "the same with step_serial"),
    }


def _data(config: RunConfig, roofline: Roofline, phase: Phase) -> dict[str, Any]:
    if phase != "train":
        return _answers(config, roofline, phase)
    steps, rows = config.train.steps, config.data.batch_size
    positions = steps * rows * config.data.seq_len
    likely = roofline.model_flops / (roofline.peak_flops * ASSUMED_MFU)
    return {
        "steps": _value(steps, "steps", "train.steps"),
        "rows": _value(steps * rows, "rows", "train.steps x data.batch_size"),
        "tokens": _value(
            positions, "positions", "rows x data.seq_len, padding and pictures included"
        ),
        "days_bound": _value(steps * roofline.overlapped / 86400, "days", "steps x step_bound"),
        "days_likely": _value(
            steps * max(likely, roofline.overlapped) / 86400,
            "days",
            f"steps at {ASSUMED_MFU:.0%} MFU",
        ),
    }


def _answers(config: RunConfig, roofline: Roofline, phase: Phase) -> dict[str, Any]:
    rows, seconds = config.eval.batch_size, roofline.overlapped
    positions = rows * (config.data.seq_len if phase == "prefill" else 1)
    return {
        "rows": _value(rows, "rows", "eval.batch_size"),
        "prompt": _value(config.data.seq_len, "positions", "data.seq_len"),
        "room": _value(config.eval.max_new_tokens, "positions", "eval.max_new_tokens"),
        "speed_bound": _value(
            positions / seconds if seconds else 0.0,
            "positions/s",
            "positions of all rows in one call / step_bound",
        ),
    }


def _mesh(config: RunConfig, pod: Pod) -> dict[str, int]:
    from refvlm_jax.mesh.build import mesh_shape
    from refvlm_jax.mesh.rules import MESH_AXES

    return dict(zip(MESH_AXES, mesh_shape(config.mesh, pod.devices), strict=True))


def _versions(pod: Pod) -> dict[str, str]:
    names = ["jax", "jaxlib", "flax"]
    names += {"tpu": ["libtpu"], "cuda": ["jax-cuda12-plugin"]}.get(pod.device.platform, [])
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
