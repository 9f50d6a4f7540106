"""Random access to a dataset's records by task and by picture, from files that are never loaded.

A folder of plain arrays is mapped into memory: opening it costs the same for a thousand records and
for a hundred million, and only what is read takes room.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.catalog import Catalog, catalog_key, load_catalog
from data_pipelines.joined import JoinedStore
from data_pipelines.shards import DialogStore, ShardError

NOT_TRAINABLE = 255
"""Value of `Index.task` for records that are only evaluated on."""
_ARRAYS = ("task", "picture", "by_task", "trainable", "members", "first")
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Index:
    """Records of a dataset, sorted both ways; arrays in memory or mapped from files."""

    tasks: tuple[str, ...]
    """Task ids in alphabetical order."""
    task: np.ndarray
    """uint8[n] index into `tasks`, or NOT_TRAINABLE."""
    picture: np.ndarray
    """[n] picture number of every record."""
    by_task: np.ndarray
    """Trainable records, task by task."""
    task_first: tuple[int, ...]
    """[tasks + 1] where each task starts in `by_task`."""
    trainable: np.ndarray
    """Trainable records in order; empty when all records are."""
    members: np.ndarray
    """[n] records sorted by picture."""
    first: np.ndarray
    """[pictures + 1] where each picture starts in `members`."""
    folder: Path | None = None
    """Where the arrays are mapped from."""

    def __getstate__(self) -> dict[str, Any]:
        # Mapped arrays would travel whole; the other process maps them itself.
        return {"folder": self.folder} if self.folder else dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        opened = Index.open(state["folder"]).__dict__ if set(state) == {"folder"} else state
        self.__dict__.update(opened)

    def pool(self, task: str) -> np.ndarray:
        """Trainable records of a task."""
        if task not in self.tasks:
            return self.by_task[:0]
        code = self.tasks.index(task)
        return self.by_task[self.task_first[code] : self.task_first[code + 1]]

    def all_records(self) -> np.ndarray | range:
        """Trainable records in order."""
        complete = len(self.by_task) == len(self.task)
        return range(len(self.task)) if complete else self.trainable

    @classmethod
    def of(cls, catalog: Catalog) -> "Index":
        """Sorts a catalog, in memory."""
        task = np.where(catalog.trainable, catalog.task, NOT_TRAINABLE).astype(np.uint8)
        order = np.argsort(task, kind="stable")
        ends = np.searchsorted(task[order], np.arange(len(catalog.tasks) + 1))
        _, picture, sizes = np.unique(catalog.picture, return_inverse=True, return_counts=True)
        complete = bool(catalog.trainable.all())
        return cls(
            tasks=catalog.tasks,
            task=task,
            picture=compact(picture),
            by_task=compact(order[: ends[-1]]),
            task_first=tuple(int(end) for end in ends),
            trainable=compact(np.flatnonzero(catalog.trainable)[: 0 if complete else None]),
            members=compact(np.argsort(picture, kind="stable")),
            first=compact(np.concatenate([[0], np.cumsum(sizes)])),
        )

    def save(self, folder: Path) -> None:
        """Writes the arrays to a new folder, all or nothing."""
        growing = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(growing, ignore_errors=True)
        growing.mkdir(parents=True)
        for name in _ARRAYS:
            np.save(growing / f"{name}.npy", getattr(self, name))
        content = {"format": FORMAT, "tasks": self.tasks, "task_first": self.task_first}
        (growing / "index.json").write_text(json.dumps(content), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(growing, folder)

    @classmethod
    def open(cls, folder: Path) -> "Index":
        """Maps the arrays of a folder.

        Raises:
          ShardError: the folder is missing, damaged or of another format.
        """
        try:
            content = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}, expected {FORMAT}")
            arrays = {
                name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in _ARRAYS
            }
            if len({len(arrays[name]) for name in ("task", "members", "picture")}) != 1:
                raise ValueError("columns of different length")
            return cls(
                tasks=tuple(content["tasks"]),
                task_first=tuple(content["task_first"]),
                folder=folder,
                **arrays,
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ShardError(f"{folder}: no usable index ({error}); delete the folder") from error


def load_index(store: DialogStore | JoinedStore, *, by_source: bool = False) -> Index:
    """The index kept beside the shards; made and kept on first use.

    Args:
      by_source: sorts by `source/task` instead of task.

    Raises:
      ShardError: a record cannot be read.
    """
    kind = "index-by-source" if by_source else "index"
    folder = store.folder / f"{kind}-{catalog_key(store):016x}"
    if folder.is_dir():
        return Index.open(folder)
    catalog = load_catalog(store)
    index = Index.of(catalog.by_source() if by_source else catalog)
    try:
        index.save(folder)
    except OSError:  # a dataset on a read-only disk is sorted at every start
        return index
    return Index.open(folder)


def compact(numbers: np.ndarray) -> np.ndarray:
    """Unsigned 32-bit where they fit, which halves large indexes."""
    fits = not len(numbers) or numbers.max() < 2**32
    return numbers.astype(np.uint32 if fits else np.int64)
