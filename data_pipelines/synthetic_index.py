"""A large made-up index, to measure what opening and reading one costs."""

import json
from pathlib import Path

import numpy as np

from data_pipelines.index import FORMAT

_CHUNK = 1 << 24


def write_synthetic_index(folder: Path, records: int, *, tasks: int = 25, picture: int = 8) -> None:
    """Writes the index of `records` records, `picture` about each picture, tasks in turn.

    Memory does not grow with `records`.
    """
    folder.mkdir(parents=True)
    pictures = -(-records // picture)
    _write(folder / "task.npy", records, np.uint8, lambda k: k % tasks)
    _write(folder / "picture.npy", records, np.uint32, lambda k: k // picture)
    _write(folder / "members.npy", records, np.uint32, lambda k: k)
    _write(
        folder / "first.npy", pictures + 1, np.uint32, lambda k: np.minimum(k * picture, records)
    )
    sizes = [len(range(task, records, tasks)) for task in range(tasks)]
    first = [0, *np.cumsum(sizes).tolist()]
    starts = np.array(first)

    def by_task(k: np.ndarray) -> np.ndarray:
        task = np.searchsorted(starts, k, side="right") - 1
        return task + (k - starts[task]) * tasks

    _write(folder / "by_task.npy", records, np.uint32, by_task)
    np.save(folder / "trainable.npy", np.zeros(0, np.uint32))
    names = [f"T{task + 1:02d}" for task in range(tasks)]
    content = {"format": FORMAT, "tasks": names, "task_first": first}
    (folder / "index.json").write_text(json.dumps(content), encoding="utf-8")


def _write(path: Path, count: int, dtype: type, value) -> None:  # type: ignore[no-untyped-def]
    array = np.lib.format.open_memmap(path, "w+", dtype, (count,))
    for start in range(0, count, _CHUNK):
        end = min(start + _CHUNK, count)
        array[start:end] = value(np.arange(start, end))
