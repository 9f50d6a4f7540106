"""Looking for a faster layout that fits: mesh, micro-batches and rematerialisation.

All candidates are estimated, the most promising are compiled, and the answer is a patch of the
recipe. An estimate knows no collectives, so it is a lower bound: what could not beat a compiled
candidate even with all its communication for free is not compiled.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from refvlm_jax.config.errors import ConfigError
from refvlm_jax.config.resolve import diff
from refvlm_jax.config.schema import MeshConfig, RunConfig
from refvlm_jax.plan.pods import Pod
from refvlm_jax.plan.program import planned_shards

COMPILES = 6
"""Candidates that are compiled, at most."""
Planner = Callable[[RunConfig, bool], dict[str, Any]]
"""(configuration, analytic only) -> plan (`plan.report.plan`)."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """A candidate that was compiled."""

    patch: dict[str, Any]
    verdict: str
    seconds: float | None
    """Bound on its step, nothing overlapping; None where the compiler gave up."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """The outcome of a search."""

    patch: dict[str, Any]
    """Dotted field -> value that differs from the recipe."""
    plan: dict[str, Any]
    tried: tuple[Trial, ...]


def candidates(config: RunConfig, pod: Pod) -> Iterator[RunConfig]:
    """Variants of a run on a pod, cheapest recomputation first, fewest micro-batches first."""
    meshes = _meshes(pod)
    parts = [n for n in (1, 2, 4) if config.data.batch_size % n == 0]
    for remat, accumulate, mesh in itertools.product(("none", "dots", "full"), parts, meshes):
        llama = dataclasses.replace(config.model.llama, remat=remat)  # type: ignore[arg-type]
        yield dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, llama=llama),
            mesh=mesh,
            train=dataclasses.replace(config.train, accumulate=accumulate),
        )


def _meshes(pod: Pod) -> list[MeshConfig]:
    """Parameters spread over a slice, over a node alone, and over a tensor axis of few neighbours."""
    if pod.devices == 1:
        return [MeshConfig(preset="single", shape=(1, 1, 1, 1))]
    flat = "fsdp" if pod.slices == 1 else "hsdp"
    found = [MeshConfig(preset=flat, shape=(pod.slices, -1, 1, 1))]  # type: ignore[arg-type]
    if (islands := pod.devices // pod.local) > pod.slices:
        found.append(MeshConfig(preset="hsdp", shape=(islands, -1, 1, 1)))
    for tensor in (2, 4):
        parts = pod.slices * tensor
        if pod.devices % parts == 0 and pod.devices > parts:
            found.append(MeshConfig(preset="fsdp_tp", shape=(pod.slices, -1, 1, tensor)))
    return found


def search(config: RunConfig, pod: Pod, planner: Planner) -> Choice:
    """The variant with the fastest step of those that fit and were compiled.

    Raises:
      ConfigError: nothing fits; the message names the nearest miss.
    """
    order = _promising(config, pod, planner)
    tried: list[Trial] = []
    settled: set[tuple[MeshConfig, str]] = set()
    best: tuple[float, RunConfig, dict[str, Any]] | None = None
    for candidate, guess in order:
        if len(tried) == COMPILES:
            break
        kind = (candidate.mesh, candidate.model.llama.remat)
        # More micro-batches only gather the parameters more often.
        if kind in settled or (best is not None and _seconds(guess) >= best[0]):
            continue
        found = planner(candidate, False)
        seconds = _seconds(found) if found["time"] else None
        tried.append(Trial(patch_of(config, candidate), found["verdict"], seconds))
        if found["fits"] and seconds is not None:
            settled.add(kind)
            if best is None or seconds < best[0]:
                best = (seconds, candidate, found)
    if best is None:
        raise ConfigError(
            f"no mesh, accumulation or rematerialisation of {config.name} fits {pod.name}; the "
            f"nearest one: {tried[0].verdict}. Lower data.batch_size or data.seq_len, or take "
            "a larger pod"
        )
    return Choice(patch_of(config, best[1]), best[2], tuple(tried))


def _promising(
    config: RunConfig, pod: Pod, planner: Planner
) -> list[tuple[RunConfig, dict[str, Any]]]:
    """Candidates with their estimates: the fastest that fit, then the nearest misses."""
    estimated = []
    for candidate in _possible(config, pod):
        try:
            estimated.append((candidate, planner(candidate, True)))
        except ConfigError:
            continue  # heads or positions that do not divide over this mesh
    if not estimated:
        raise ConfigError(
            f"data.batch_size = {config.data.batch_size} divides over no mesh of {pod.devices} "
            f"devices; use a multiple of {pod.devices}"
        )
    fitting = [e for e in estimated if e[1]["fits"]]
    # The nearest misses are worth a compile as well: the estimate is not exact.
    missing = [e for e in estimated if not e[1]["fits"]]
    fitting.sort(key=lambda e: _seconds(e[1]))
    missing.sort(key=lambda e: e[1]["memory"]["peak"]["value"])
    return fitting + missing


def _seconds(found: dict[str, Any]) -> float:
    return float(found["time"]["step_serial"]["value"])


def _possible(config: RunConfig, pod: Pod) -> Iterator[RunConfig]:
    for candidate in candidates(config, pod):
        parts = candidate.train.accumulate * planned_shards(candidate, pod.devices)
        if candidate.data.batch_size % parts == 0:
            yield candidate


def patch_of(base: RunConfig, chosen: RunConfig) -> dict[str, Any]:
    """Dotted fields of `chosen` that differ from `base`."""
    return {name: value for name, (_, value) in diff(base, chosen).items()}
