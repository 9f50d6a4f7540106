"""ArrayRecord shards of Dialog records, their manifest, and random access over them."""

import bisect
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from data_pipelines.records import Dialog, decode

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1


class ShardError(ValueError):
    """A built dataset cannot be read; the message names the file, the record and the remedy."""


@dataclass(frozen=True)
class ShardInfo:
    """One finished shard."""

    name: str
    records: int
    bytes: int
    sha256: str


def file_sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ShardWriter:
    """Writes records to `stem-00000-of-0000N.array_record`, visible only when complete.

    Shards are written under temporary names; closing without an error renames them, since their
    number is part of every name.
    """

    def __init__(self, out_dir: Path, stem: str, records_per_shard: int = 20_000):
        self.out_dir, self.stem, self.limit = Path(out_dir), stem, records_per_shard
        self.shards: list[ShardInfo] = []
        self._counts: list[int] = []
        self._writer: ArrayRecordWriter | None = None

    def __enter__(self) -> "ShardWriter":
        self.out_dir.mkdir(parents=True, exist_ok=True)
        return self

    def write(self, data: bytes) -> None:
        """Appends one record."""
        if self._writer is None or self._counts[-1] >= self.limit:
            self._close_shard()
            self._writer = ArrayRecordWriter(
                str(self._temporary(len(self._counts))), "group_size:1"
            )
            self._counts.append(0)
        self._writer.write(data)
        self._counts[-1] += 1

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._close_shard()
        for number, records in enumerate(self._counts):
            path = self._temporary(number)
            if kind is not None:
                path.unlink(missing_ok=True)
                continue
            name = f"{self.stem}-{number:05d}-of-{len(self._counts):05d}.array_record"
            info = ShardInfo(name, records, path.stat().st_size, file_sha256(path))
            os.replace(path, self.out_dir / name)
            self.shards.append(info)

    def _temporary(self, number: int) -> Path:
        return self.out_dir / f".{self.stem}-{number:05d}.{os.getpid()}.tmp"

    def _close_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def write_manifest(
    out_dir: Path,
    *,
    stores: Mapping[str, Sequence[ShardInfo]],
    image_root: str,
    counts: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> None:
    """Writes manifest.json atomically; a folder without one is not a dataset."""
    content = {
        "schema_version": MANIFEST_VERSION,
        "image_root": image_root,
        "stores": {stem: [asdict(shard) for shard in shards] for stem, shards in stores.items()},
        "counts": dict(counts),
        **extra,
    }
    temporary = Path(out_dir) / f".{MANIFEST}.tmp"
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, Path(out_dir) / MANIFEST)


def read_manifest(out_dir: Path, *, verify: bool = False) -> dict[str, Any]:
    """The manifest of a built dataset; `verify` also checks every shard's checksum.

    Raises:
      ShardError: no manifest, another version, or a shard that is missing or differs.
    """
    path = Path(out_dir) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ShardError(f"{path}: not found; build the dataset with `refvlm data build`") from None
    except json.JSONDecodeError as error:
        raise ShardError(f"{path}: not JSON ({error}); build the dataset again") from None
    if manifest.get("schema_version") != MANIFEST_VERSION:
        raise ShardError(
            f"{path}: schema version {manifest.get('schema_version')}, expected "
            f"{MANIFEST_VERSION}; build the dataset again with this version"
        )
    for shards in manifest["stores"].values():
        for shard in shards:
            _check_shard(Path(out_dir) / shard["name"], shard, verify)
    return manifest


def _check_shard(path: Path, shard: Mapping[str, Any], verify: bool) -> None:
    if not path.is_file():
        raise ShardError(f"{path}: shard is missing; copy it again or rebuild the dataset")
    if (size := path.stat().st_size) != shard["bytes"]:
        raise ShardError(
            f"{path}: {size} bytes, the manifest says {shard['bytes']} (truncated or replaced); "
            "copy it again or rebuild the dataset"
        )
    if verify and file_sha256(path) != shard["sha256"]:
        raise ShardError(f"{path}: checksum differs from the manifest; copy it again or rebuild")


class DialogStore:
    """Random access to the dialogues of a built dataset; opens shards lazily in each process."""

    def __init__(self, out_dir: Path, stems: Sequence[str] | None = None):
        self.out_dir = Path(out_dir)
        stores = read_manifest(self.out_dir)["stores"]
        if unknown := sorted(set(stems or ()) - set(stores)):
            raise ShardError(f"{self.out_dir}: no stores {unknown}; it has {sorted(stores)}")
        chosen = [shard for stem in (stems or sorted(stores)) for shard in stores[stem]]
        self._names = [shard["name"] for shard in chosen]
        self._ends: list[int] = []
        for shard in chosen:
            self._ends.append(shard["records"] + (self._ends[-1] if self._ends else 0))
        self._readers: dict[int, ArrayRecordReader] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Dialog:
        """The dialogue at a position.

        Raises:
          ShardError: the record is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of a dataset with {len(self)}")
        shard = bisect.bisect_right(self._ends, index)
        local = index - (self._ends[shard - 1] if shard else 0)
        path = self.out_dir / self._names[shard]
        try:
            return decode(self._reader(shard).read([local])[0])
        except (ValueError, RuntimeError, IndexError) as error:
            raise ShardError(
                f"{path}, record {local}: {error}; the shard is damaged, copy it again or rebuild"
            ) from error

    def _reader(self, shard: int) -> ArrayRecordReader:
        if shard not in self._readers:
            path = str(self.out_dir / self._names[shard])
            self._readers[shard] = ArrayRecordReader(path, "readahead_buffer_size:0")
        return self._readers[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}}
