"""Dialog records on disk: ArrayRecord shards and random access to them."""

import os
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, SupportsIndex

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from data_pipelines.manifest import (
    MANIFEST,
    REBUILD,
    ShardError,
    ShardInfo,
    file_sha256,
    read_manifest,
    write_manifest,
)
from data_pipelines.records import Dialog, decode

__all__ = [
    "MANIFEST",
    "WRITER_OPTIONS",
    "DialogStore",
    "ShardError",
    "ShardInfo",
    "ShardWriter",
    "read_manifest",
    "write_manifest",
]

WRITER_OPTIONS = "group_size:1"  # every record can be read alone
_READER = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 32768}
_SCAN = 1024  # records read together when a whole store is scanned


class ShardWriter:
    """Writes records to `stem-00000-of-00003.array_record` and so on, in the order of the calls.

    Shards grow under temporary names and get their own once all are complete; an exception inside
    the `with` block leaves no file behind. `shards` lists them after the block.
    """

    def __init__(self, out_dir: Path, stem: str, records_per_shard: int = 20000) -> None:
        if records_per_shard < 1:
            raise ValueError(f"records_per_shard is {records_per_shard}; a shard holds at least 1")
        self.shards: list[ShardInfo] = []
        self._folder, self._stem, self._limit = Path(out_dir), stem, records_per_shard
        self._counts: list[int] = []
        self._writer: ArrayRecordWriter | None = None

    def __enter__(self) -> "ShardWriter":
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def write(self, data: bytes) -> None:
        """Appends one record."""
        if self._writer is None or self._counts[-1] == self._limit:
            self._close_shard()
            self._counts.append(0)
            self._writer = ArrayRecordWriter(
                str(self._temporary(len(self._counts) - 1)), WRITER_OPTIONS
            )
        self._writer.write(data)
        self._counts[-1] += 1

    def __exit__(self, kind: object, *_: object) -> None:
        self._close_shard()
        if kind is None:
            self.shards = [self._publish(shard) for shard in range(len(self._counts))]
        else:
            for shard in range(len(self._counts)):
                self._temporary(shard).unlink(missing_ok=True)

    def _close_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _temporary(self, shard: int) -> Path:
        return self._folder / f".{self._stem}-{shard:05d}.{os.getpid()}.tmp"

    def _publish(self, shard: int) -> ShardInfo:
        name = f"{self._stem}-{shard:05d}-of-{len(self._counts):05d}.array_record"
        path = self._folder / name
        os.replace(self._temporary(shard), path)
        size = path.stat().st_size
        digest = file_sha256(path)
        return ShardInfo(name=name, records=self._counts[shard], bytes=size, sha256=digest)


class DialogStore:
    """Random access to the dialogues of a dataset, stems in alphabetical order.

    Shards are opened when first read, in every process for itself; reading from several threads is
    safe.

    Args:
      out_dir: the dataset.
      stems: which of its stores to read; None for all.

    Raises:
      ShardError: see `read_manifest`; or an unknown stem.
    """

    def __init__(self, out_dir: Path, stems: Sequence[str] | None = None) -> None:
        self.folder = Path(out_dir)
        stores = read_manifest(self.folder)["stores"]
        if unknown := sorted(set(stems or ()) - set(stores)):
            raise ShardError(f"{self.folder}: no store {unknown}; it has {sorted(stores)}")
        chosen = sorted(stores if stems is None else set(stems))
        self.shards: list[ShardInfo] = [shard for stem in chosen for shard in stores[stem]]
        self._ends = list(accumulate(shard.records for shard in self.shards))
        self._open_readers()

    def _open_readers(self) -> None:
        self._readers: dict[int, ArrayRecordReader] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_readers", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open_readers()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: SupportsIndex) -> Dialog:
        shard, record = self._locate(index.__index__())
        data = self._read(shard, [record])[0]
        try:
            return decode(data)
        except ValueError as error:
            raise ShardError(f"{self._name(shard, record)}: {error}; {REBUILD}") from error

    def scan(self) -> Iterator[bytes]:
        """All records undecoded, in order, read in blocks."""
        for shard, info in enumerate(self.shards):
            for start in range(0, info.records, _SCAN):
                yield from self._read(shard, range(start, min(start + _SCAN, info.records)))

    def describe(self, index: int) -> str:
        """Shard and position of a record, for messages."""
        return self._name(*self._locate(index))

    def range_of(self, shard: str) -> range:
        """Numbers of the records of one shard; ShardError when the dataset has no such shard."""
        for info, end in zip(self.shards, self._ends, strict=True):
            if info.name == shard:
                return range(end - info.records, end)
        raise ShardError(f"{self.folder}: the manifest has no shard {shard!r}; give one of its own")

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder}: record {index} of {len(self)}")
        shard = bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def _name(self, shard: int, record: int) -> str:
        return f"{self.folder / self.shards[shard].name} record {record}"

    def _reader(self, shard: int) -> ArrayRecordReader:
        with self._lock:
            if shard not in self._readers:
                path = str(self.folder / self.shards[shard].name)
                self._readers[shard] = ArrayRecordReader(path, **_READER)
            return self._readers[shard]

    def _read(self, shard: int, records: Sequence[int]) -> list[bytes]:
        try:
            return self._reader(shard).read(list(records))
        except (RuntimeError, IndexError, ValueError, OSError) as error:
            where = self._name(shard, records[0])
            raise ShardError(f"{where}: cannot be read ({error}); {REBUILD}") from error
