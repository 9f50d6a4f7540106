"""The sample plan: which dialogues make row g of the endless global stream, as a pure function.

A row is one picture with up to `merge` of its dialogues. Rows of an epoch are a weighted draw by
task followed by company from the same picture; every choice is keyed by (seed, row), so the stream
needs no state but the row number.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data_pipelines.records import Dialog


class Store(Protocol):
    """Random access to dialogues."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Dialog: ...


@dataclass(frozen=True)
class Plan:
    """Index arrays over the records of a store."""

    tasks: tuple[str, ...]
    weights: np.ndarray
    """float[tasks] probability of each task for the first dialogue of a row."""
    members: tuple[np.ndarray, ...]
    """int[n] records of each task."""
    task: np.ndarray
    """int[records] task of each record."""
    picture: np.ndarray
    """int[records] picture of each record."""
    starts: np.ndarray
    """int[pictures + 1] range of each picture in `by_picture`."""
    by_picture: np.ndarray
    """int[records] records sorted by picture."""
    merge: int
    seed: int

    def rows(self, index: int) -> list[int]:
        """Records of row `index`, in conversation order."""
        rng = np.random.default_rng([self.seed, index])
        task = int(rng.choice(len(self.tasks), p=self.weights))
        first = int(rng.choice(self.members[task]))
        picture = self.picture[first]
        company = self.by_picture[self.starts[picture] : self.starts[picture + 1]]
        company = company[company != first]
        extra = min(self.merge - 1, len(company))
        if extra <= 0:
            return [first]
        odds = self.weights[self.task[company]] / self._sizes(company)
        if odds.sum() == 0:
            return [first]
        extra = min(extra, int((odds > 0).sum()))
        chosen = rng.choice(company, extra, replace=False, p=odds / odds.sum())
        return [first, *map(int, chosen)]

    def _sizes(self, records: np.ndarray) -> np.ndarray:
        """How many of these records share each one's task, so that weights act per task."""
        tasks = self.task[records]
        return np.bincount(tasks, minlength=len(self.tasks))[tasks]


def build_plan(
    store: Store, *, weights: Mapping[str, float], merge: int = 1, seed: int = 0
) -> Plan:
    """Indexes a store.

    Args:
      weights: sampling weight by task id; empty means by record counts. Tasks not named get 0.
      merge: dialogues of the same picture in a row, at most.

    Raises:
      ValueError: no record has a positive weight.
    """
    keys: dict[str, int] = {}
    names: dict[str, int] = {}
    task, picture = np.zeros(len(store), np.int32), np.zeros(len(store), np.int64)
    members: dict[str, list[int]] = defaultdict(list)
    for record in range(len(store)):
        dialog = store[record]
        task[record] = names.setdefault(dialog.task_id, len(names))
        path = dialog.image.path if dialog.image else f"text/{record}"
        picture[record] = keys.setdefault(path, len(keys))
        members[dialog.task_id].append(record)
    probability = _probabilities({name: len(members[name]) for name in names}, weights)
    order = np.argsort(picture, kind="stable")
    starts = np.searchsorted(picture[order], np.arange(len(keys) + 1))
    return Plan(
        tasks=tuple(names),
        weights=probability,
        members=tuple(np.asarray(members[name]) for name in names),
        task=task,
        picture=picture,
        starts=starts,
        by_picture=order,
        merge=merge,
        seed=seed,
    )


def _probabilities(counts: Mapping[str, int], weights: Mapping[str, float]) -> np.ndarray:
    raw = np.array([weights.get(t, 0.0) if weights else n for t, n in counts.items()], np.float64)
    if not raw.sum() > 0:
        raise ValueError(
            f"no task has a positive weight: the data hold {sorted(counts)}, data.weights names "
            f"{sorted(weights)}"
        )
    return raw / raw.sum()


def realised(plan: Plan, rows: Sequence[int]) -> dict[str, int]:
    """How many dialogues of each task these rows contain."""
    counts: dict[str, int] = dict.fromkeys(plan.tasks, 0)
    for row in rows:
        for record in plan.rows(row):
            counts[plan.tasks[plan.task[record]]] += 1
    return counts
