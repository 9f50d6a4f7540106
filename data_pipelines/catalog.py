"""Catalog of a dataset: the few columns of every record that planning needs, as NumPy arrays.

Scanning all records takes seconds to hours, so the columns are kept in the dataset's folder.
"""

import hashlib
import logging
import os
import zipfile
from collections.abc import Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from data_pipelines.joined import JoinedStore
from data_pipelines.shards import DialogStore, ShardError

_LOG = logging.getLogger(__name__)
_LABELS = 255  # what a byte tells apart, one value kept for records that are only evaluated on


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """Columns over the `n` records of a store."""

    tasks: tuple[str, ...]
    """Task ids in alphabetical order."""
    task: np.ndarray
    """uint8[n] index into `tasks`."""
    picture: np.ndarray
    """uint64[n] hash of the picture; records without one have a value of their own."""
    trainable: np.ndarray
    """bool[n]: not marked `eval_only`."""
    sources: tuple[str, ...] = ()
    """Names of sources in alphabetical order; empty where nobody asks for them."""
    source: np.ndarray | None = None
    """uint16[n] index into `sources`."""

    def numbers_of(self, tasks: Set[str]) -> np.ndarray:
        """int64[k] numbers of the records of some tasks, in order; unknown ids have none."""
        codes = [code for code, task in enumerate(self.tasks) if task in tasks]
        return np.flatnonzero(np.isin(self.task, codes))

    def by_source(self) -> "Catalog":
        """The same with `source/task` in the place of every task.

        Raises:
          ShardError: more combinations than an index tells apart.
        """
        assert self.source is not None
        names = [f"{source}/{task}" for source in self.sources for task in self.tasks]
        code = self.source.astype(np.int64) * len(self.tasks) + self.task
        used, task = np.unique(code, return_inverse=True)
        if len(used) > _LABELS:
            raise ShardError(
                f"{len(used)} combinations of source and task, at most {_LABELS}; mix fewer datasets"
            )
        labels = tuple(names[k] for k in used)
        order = np.argsort(np.argsort(labels))
        return replace(self, tasks=tuple(sorted(labels)), task=order[task].astype(np.uint8))


def load_catalog(store: DialogStore | JoinedStore) -> Catalog:
    """The catalog kept beside the shards; made and kept on first use.

    Raises:
      ShardError: a record cannot be read.
    """
    if isinstance(store, JoinedStore):
        return _joined(store)
    path = _path(store)
    try:
        with np.load(path, allow_pickle=False) as columns:
            return Catalog(
                tasks=tuple(columns["tasks"].tolist()),
                sources=tuple(columns["sources"].tolist()),
                **{name: columns[name] for name in ("task", "picture", "trainable", "source")},
            )
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        _LOG.warning("%s: damaged catalog (%s); scanning the records again", path, error)
    catalog = scan_catalog(store)
    _save(catalog, path)
    return catalog


def scan_catalog(store: DialogStore | JoinedStore) -> Catalog:
    """The catalog of all records, without saving it."""
    tasks, pictures, trainable, sources = [], [], [], []
    for index, data in enumerate(store.scan()):
        raw = _unpack(data, store, index)
        tasks.append(raw["task_id"])
        sources.append(raw["source"])
        pictures.append(hash_text(picture_key(raw)))
        trainable.append("eval_only" not in raw["flags"])
    names, task = np.unique(np.array(tasks, np.str_), return_inverse=True)
    sourced, source = np.unique(np.array(sources, np.str_), return_inverse=True)
    if len(names) > 256:
        raise ShardError(f"{store.folder}: {len(names)} task ids, expected T01..T25; check task_id")
    return Catalog(
        tasks=tuple(names.tolist()),
        task=task.astype(np.uint8),
        picture=np.array(pictures, np.uint64),
        trainable=np.array(trainable, np.bool_),
        sources=tuple(sourced.tolist()),
        source=source.astype(np.uint16),
    )


def _joined(store: JoinedStore) -> Catalog:
    """The catalogs of all parts. Pictures are the same where their files are."""
    parts = [(part, load_catalog(part)) for part in store.parts]
    tasks = tuple(sorted({task for _, made in parts for task in made.tasks}))
    sources = tuple(sorted({source for _, made in parts for source in made.sources}))
    column: dict[str, list[np.ndarray]] = {
        n: [] for n in ("task", "source", "picture", "trainable")
    }
    for part, made in parts:
        assert made.source is not None
        salt = np.uint64(hash_text(store.roots[part.folder]))
        column["task"].append(_renumbered(made.task, made.tasks, tasks))
        column["source"].append(_renumbered(made.source, made.sources, sources))
        column["picture"].append(made.picture ^ salt)
        column["trainable"].append(made.trainable)
    found = {name: np.concatenate(arrays) for name, arrays in column.items()}
    return Catalog(tasks=tasks, sources=sources, **found)


def _renumbered(code: np.ndarray, own: tuple[str, ...], names: tuple[str, ...]) -> np.ndarray:
    return np.array([names.index(name) for name in own], code.dtype)[code]


def picture_key(raw: dict[str, Any]) -> str:
    """What tells the picture of an undecoded record from others; the uid when it has none."""
    image = raw["image"]
    if image is None:
        return f"uid {raw['uid']}"
    return f"{image['sha256'] or image['path']} {image['width']} {image['height']}"


def _unpack(data: bytes, store: DialogStore | JoinedStore, index: int) -> dict[str, Any]:
    try:
        raw = msgpack.unpackb(data, raw=False, strict_map_key=False)
        if isinstance(raw, dict) and {"task_id", "source", "image", "flags", "uid"} <= raw.keys():
            return raw
        reason = "not a Dialog record"
    except Exception as error:  # msgpack raises several unrelated types
        reason = str(error)
    raise ShardError(f"{store.describe(index)}: {reason}; build the dataset again")


def hash_text(text: str) -> int:
    """64 bits of a text, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def catalog_key(store: DialogStore | JoinedStore) -> int:
    """64 bits that tell the content of a store from others."""
    return hash_text("".join(f"{shard.name} {shard.sha256}\n" for shard in store.shards))


def _path(store: DialogStore | JoinedStore) -> Path:
    return store.folder / f"catalog-{catalog_key(store):016x}.npz"


def _save(catalog: Catalog, path: Path) -> None:
    assert catalog.source is not None
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(
                file,
                tasks=np.array(catalog.tasks, np.str_),
                task=catalog.task,
                picture=catalog.picture,
                trainable=catalog.trainable,
                sources=np.array(catalog.sources, np.str_),
                source=catalog.source,
            )
        os.replace(temporary, path)
    except OSError as error:  # a dataset on a read-only disk is scanned at every start
        _LOG.warning("%s: catalog not kept (%s)", path, error.strerror)
