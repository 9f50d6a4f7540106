"""Compiler flags of a pod, read from `xla_flags.toml`."""

import tomllib
from dataclasses import dataclass
from importlib import resources

from refvlm_jax.launching.pods import Pod


@dataclass(frozen=True)
class Flag:
    """A compiler flag and why it is set."""

    flag: str
    why: str


@dataclass(frozen=True)
class FlagSet:
    """Flags and the environment variable they go into."""

    variable: str
    flags: tuple[Flag, ...]

    @property
    def value(self) -> str:
        """All flags as one string."""
        return " ".join(f.flag for f in self.flags)


def flag_sets() -> dict[str, dict]:
    """The data file: platform or model -> variable, `everywhere`, `several`."""
    text = resources.files("refvlm_jax.launching").joinpath("xla_flags.toml").read_text("utf-8")
    return tomllib.loads(text)


def flags_of(pod: Pod, *, deterministic: bool = False) -> FlagSet:
    """The flags of a pod: its platform's, its model's, and those for several slices or nodes."""
    sets = flag_sets()
    several = pod.slices > 1 or (pod.kind == "gpu" and pod.hosts > 1)
    names = [
        pod.kind,
        pod.model,
        *(["deterministic"] if deterministic and pod.kind == "gpu" else []),
    ]
    chosen = [
        Flag(**entry)
        for name in names
        for part in ("everywhere", *(["several"] if several else []))
        for entry in sets.get(name, {}).get(part, [])
    ]
    return FlagSet(sets[pod.kind]["variable"], tuple(chosen))
