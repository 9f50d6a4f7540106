"""Catalog of a dataset: the few columns of every record that planning needs, as NumPy arrays.

Scanning all records takes seconds to hours, so the columns are kept in the dataset's folder.
"""

import hashlib
import logging
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from data_pipelines.shards import DialogStore, ShardError

_LOG = logging.getLogger(__name__)


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


def load_catalog(store: DialogStore) -> Catalog:
    """The catalog kept beside the shards; made and kept on first use.

    Raises:
      ShardError: a record cannot be read.
    """
    path = _path(store)
    try:
        with np.load(path, allow_pickle=False) as columns:
            return Catalog(
                tasks=tuple(columns["tasks"].tolist()),
                **{name: columns[name] for name in ("task", "picture", "trainable")},
            )
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        _LOG.warning("%s: damaged catalog (%s); scanning the records again", path, error)
    catalog = scan_catalog(store)
    _save(catalog, path)
    return catalog


def scan_catalog(store: DialogStore) -> Catalog:
    """The catalog of all records, without saving it."""
    tasks, pictures, trainable = [], [], []
    for index, data in enumerate(store.scan()):
        raw = _unpack(data, store, index)
        tasks.append(raw["task_id"])
        pictures.append(_hash(picture_key(raw)))
        trainable.append("eval_only" not in raw["flags"])
    names, task = np.unique(np.array(tasks, np.str_), return_inverse=True)
    if len(names) > 256:
        raise ShardError(f"{store.folder}: {len(names)} task ids, expected T01..T25; check task_id")
    return Catalog(
        tasks=tuple(names.tolist()),
        task=task.astype(np.uint8),
        picture=np.array(pictures, np.uint64),
        trainable=np.array(trainable, np.bool_),
    )


def picture_key(raw: dict[str, Any]) -> str:
    """What tells the picture of an undecoded record from others; the uid when it has none."""
    image = raw["image"]
    if image is None:
        return f"uid {raw['uid']}"
    return f"{image['sha256'] or image['path']} {image['width']} {image['height']}"


def _unpack(data: bytes, store: DialogStore, index: int) -> dict[str, Any]:
    try:
        raw = msgpack.unpackb(data, raw=False, strict_map_key=False)
        if isinstance(raw, dict) and {"task_id", "image", "flags", "uid"} <= raw.keys():
            return raw
        reason = "not a Dialog record"
    except Exception as error:  # msgpack raises several unrelated types
        reason = str(error)
    raise ShardError(f"{store.describe(index)}: {reason}; build the dataset again")


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def catalog_key(store: DialogStore) -> int:
    """64 bits that tell the content of a store from others."""
    return _hash("".join(f"{shard.name} {shard.sha256}\n" for shard in store.shards))


def _path(store: DialogStore) -> Path:
    return store.folder / f"catalog-{catalog_key(store):016x}.npz"


def _save(catalog: Catalog, path: Path) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(
                file,
                tasks=np.array(catalog.tasks, np.str_),
                task=catalog.task,
                picture=catalog.picture,
                trainable=catalog.trainable,
            )
        os.replace(temporary, path)
    except OSError as error:  # a dataset on a read-only disk is scanned at every start
        _LOG.warning("%s: catalog not kept (%s)", path, error.strerror)
