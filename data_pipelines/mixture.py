"""Mixtures: how often each source and task is seen, as a TOML file next to the recipes.

    about = "what it is"

    [[parts]]
    source = "refcoco*"   # names of sources, with the wildcards of file names
    tasks = ["T18"]       # of those only these; all where it is left out
    portion = 0.5         # the records of a fixed random part
    seed = 42             # which part
    weight = 3.0          # each of them so many times as often as those of a part of weight 1

Every combination of source and task belongs to the first part that names it; one that no part names
is not in the mixture.
"""

import fnmatch
import json
import logging
import os
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.catalog import hash_text
from data_pipelines.index import Index, load_index
from data_pipelines.joined import JoinedStore
from data_pipelines.permute import mix
from data_pipelines.plan import Plan, block_shares
from data_pipelines.shards import DialogStore
from data_pipelines.tasks import TASKS

_LOG = logging.getLogger(__name__)


class MixtureError(ValueError):
    """A mixture file cannot be used; the message names it, the field and the remedy."""


@dataclass(frozen=True, kw_only=True)
class MixturePart:
    """Sources and tasks that are drawn from alike."""

    source: str
    """Name of a source, with the wildcards of file names."""
    tasks: tuple[str, ...] = ()
    """Task ids; empty for all."""
    portion: float = 1.0
    """Part of the records that is ever drawn."""
    seed: int = 0
    """Which part that is."""
    weight: float = 1.0
    """How often a record is seen, relative to others."""

    def __post_init__(self) -> None:
        if not 0.0 < self.portion <= 1.0:
            raise ValueError(f"portion is {self.portion}, expected above 0 and at most 1")
        if not 0.0 < self.weight < float("inf"):
            raise ValueError(f"weight is {self.weight}, expected above 0")
        if unknown := sorted(set(self.tasks) - set(TASKS)):
            raise ValueError(f"tasks has {unknown}, expected ids of `refvlm data tasks`")

    def holds(self, label: str) -> bool:
        """Whether `source/task` belongs to it."""
        source, _, task = label.rpartition("/")
        return fnmatch.fnmatchcase(source, self.source) and (not self.tasks or task in self.tasks)


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Parts in the order of the file."""

    name: str
    about: str
    parts: tuple[MixturePart, ...]


@dataclass(frozen=True, kw_only=True)
class Ingredient:
    """One combination of source and task in a mixture of built datasets."""

    label: str
    """`source/task`."""
    records: int
    """Trainable records."""
    kept: int
    """Records that are ever drawn: the first of the permutation of `key`."""
    key: int
    """Key of `permute.permuted`."""
    share: float
    """Wanted part of the stream."""


def load_mixture(path: Path) -> Mixture:
    """Reads a mixture file.

    Raises:
      MixtureError: no such file, not TOML, or an unknown field or value.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise MixtureError(
            f"{path}: no mixture ({error.strerror}); give one of configs/mixtures or your own"
        ) from error
    except ValueError as error:
        raise MixtureError(f"{path}: not TOML ({error}); correct the line") from error
    rows = content.get("parts")
    if set(content) != {"about", "parts"} or not isinstance(rows, list) or not rows:
        raise MixtureError(f"{path}: expected `about` and one or more [[parts]], nothing else")
    parts = tuple(_part(row, f"{path}: part {number}") for number, row in enumerate(rows, 1))
    return Mixture(name=Path(path).stem, about=str(content["about"]), parts=parts)


def _part(row: dict[str, Any], where: str) -> MixturePart:
    known = {field.name: field.type for field in fields(MixturePart)}
    if unknown := sorted(set(row) - set(known)):
        raise MixtureError(f"{where}: unknown field {unknown[0]!r}; known: {sorted(known)}")
    expected: dict[str, type | tuple[type, ...]] = {
        "source": str, "tasks": list, "portion": (int, float), "seed": int, "weight": (int, float),
    }  # fmt: skip
    for name, value in row.items():
        if not isinstance(value, expected[name]) or isinstance(value, bool):
            raise MixtureError(f"{where}: {name} = {value!r} has the wrong type; see mixture.py")
    try:
        return MixturePart(**{**row, "tasks": tuple(row.get("tasks", ()))})
    except (TypeError, ValueError) as error:
        raise MixtureError(f"{where}: {error}; correct it") from error


def ingredients(mixture: Mixture, index: Index) -> list[Ingredient]:
    """What a mixture makes of an index that is sorted by source and task.

    A part that no record belongs to is logged and left out.

    Raises:
      MixtureError: nothing is left.
    """
    found: list[tuple[str, int, int, int, float]] = []
    empty = set(mixture.parts)
    for label in index.tasks:
        part = next((part for part in mixture.parts if part.holds(label)), None)
        records = len(index.pool(label))
        if part is None or not records:
            continue
        empty.discard(part)
        kept = max(1, round(records * part.portion))
        found.append((label, records, kept, mix(part.seed, hash_text(label)), kept * part.weight))
    for part in mixture.parts:
        if part in empty:
            tasks = f" {list(part.tasks)}" if part.tasks else ""
            _LOG.warning("%s: no record of %s%s; left out", mixture.name, part.source, tasks)
    if not found:
        raise MixtureError(f"{mixture.name}: none of its parts has a record in the datasets")
    total = sum(row[-1] for row in found)
    return [
        Ingredient(label=label, records=records, kept=kept, key=key, share=size / total)
        for label, records, kept, key, size in found
    ]


def mixture_plan(
    store: DialogStore | JoinedStore, mixture: Mixture, *, merge: int = 1, seed: int = 0
) -> Plan:
    """The stream of a mixture over built datasets; see `plan.build_plan`.

    Raises:
      MixtureError: nothing to sample.
      ShardError: a record cannot be read.
    """
    index = load_index(store, by_source=True)
    found = ingredients(mixture, index)
    weight = np.zeros(256)
    for one in found:
        weight[index.tasks.index(one.label)] = one.share / one.kept
    return Plan(
        seed=seed,
        merge=merge,
        index=index,
        pools=tuple(one.label for one in found),
        shares=block_shares([one.share for one in found]),
        portions=tuple(one.kept for one in found),
        keys=tuple(one.key for one in found),
        weight=weight,
    )


def realised(plan: Plan, rows: int) -> dict[str, int]:
    """Records of every source and task in the first `rows` rows of a stream without packing."""
    records = np.concatenate([np.asarray(row) for row in plan.batch(0, rows)])
    counts = Counter(np.asarray(plan.index.task[records]).tolist())
    return {plan.index.tasks[code]: count for code, count in sorted(counts.items())}


def save_manifest(path: Path, mixture: Mixture, found: Sequence[Ingredient]) -> None:
    """Writes what a mixture is made of, permutation keys included, as JSON; atomic."""
    content = {
        "mixture": mixture.name,
        "about": mixture.about,
        "ingredients": [asdict(one) for one in found],
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, path)
