"""Recorded numbers beside computed ones: errors, tolerances and the printed table."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

TOLERANCES = {"out": 1e-4, "loss": 1e-5, "gradnorm": 1e-3, "grad": 1e-3}
"""Kind of a recorded number -> largest relative error."""
_NOISE = 1e-5
"""Share of the largest gradient norm below which a norm is rounding noise: true zeros, such as
those of attention key biases, are recorded as noise."""


@dataclass(frozen=True)
class Entry:
    """One compared tensor."""

    name: str
    max_abs_error: float
    max_relative_error: float
    """To the recorded tensor's own largest magnitude."""
    tolerance: float
    passed: bool
    note: str = ""


def compare(
    name: str, found: np.ndarray | None, want: np.ndarray, tolerance: float, *, floor: float = 0.0
) -> Entry:
    """Compares one tensor; `floor` is the least magnitude that errors are relative to."""
    missing = float("inf")
    if found is None:
        return Entry(name, missing, missing, tolerance, False, "not computed")
    found = np.asarray(found)
    if found.shape != want.shape:
        note = f"shape {found.shape}, recorded {want.shape}"
        return Entry(name, missing, missing, tolerance, False, note)
    if want.size == 0:
        return Entry(name, 0.0, 0.0, tolerance, True)
    if want.dtype.kind in "biu":
        wrong = int((found.astype(np.int64) != want.astype(np.int64)).sum())
        return Entry(
            name, wrong, wrong / want.size, 0.0, wrong == 0, f"{wrong} of {want.size} differ"
        )
    error = np.abs(found.astype(np.float64) - want.astype(np.float64)).max()
    scale = max(float(np.abs(want).max()), floor)
    relative = float(error / scale) if scale else (0.0 if error == 0 else missing)
    # NaN compares as a failure.
    return Entry(name, float(error), relative, tolerance, bool(relative <= tolerance))


def compare_norms(found: Mapping[str, float], want: Mapping[str, np.ndarray]) -> list[Entry]:
    """Gradient norms by state-dict key."""
    norms = {key: float(np.ravel(value)[0]) for key, value in want.items()}
    floor = _NOISE * max(norms.values(), default=0.0)
    entries = []
    for key, norm in sorted(norms.items()):
        own = None if key not in found else np.asarray([found[key]])
        tolerance = TOLERANCES["gradnorm"]
        entries.append(compare(f"gradnorm.{key}", own, np.asarray([norm]), tolerance, floor=floor))
    return entries


def report(name: str, entries: Sequence[Entry]) -> dict[str, Any]:
    """JSON-ready summary."""
    failed = [entry.name for entry in entries if not entry.passed]
    return {
        "name": name,
        "passed": bool(entries) and not failed,
        "compared": len(entries),
        "failed": failed,
        "entries": [_jsonable(asdict(entry)) for entry in entries],
    }


def _jsonable(values: dict[str, Any]) -> dict[str, Any]:
    """JSON knows neither infinity nor NaN."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()
    }


def table(entries: Iterable[Entry]) -> str:
    """Name, largest absolute and relative error, verdict."""
    entries = list(entries)
    width = max([len(entry.name) for entry in entries] + [4])
    lines = [f"{'name':<{width}}  {'max abs':>10}  {'max rel':>10}  pass"]
    for e in entries:
        verdict = "yes" if e.passed else "NO"
        note = f"  {e.note}" if e.note and not e.passed else ""
        lines.append(
            f"{e.name:<{width}}  {e.max_abs_error:>10.3e}  {e.max_relative_error:>10.3e}  "
            f"{verdict}{note}"
        )
    return "\n".join(lines)
