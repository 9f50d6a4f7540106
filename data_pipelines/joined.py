"""Several built datasets read as one."""

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import SupportsIndex

from data_pipelines.manifest import ShardInfo, read_manifest
from data_pipelines.records import Dialog
from data_pipelines.shards import DialogStore


class JoinedStore:
    """Random access to the dialogues of several datasets, one behind the other.

    Paths in the records it returns are absolute, for every dataset has its own picture folder.

    Args:
      folders: the datasets. What is computed over all of them is kept in the first.

    Raises:
      ShardError: a dataset cannot be read.
      ValueError: no dataset, or one that is named twice.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        if not folders or len(set(folders)) < len(folders):
            raise ValueError(f"datasets {[str(f) for f in folders]}: name one or more, each once")
        self.parts = [DialogStore(folder) for folder in folders]
        self.folder = self.parts[0].folder
        self.shards: list[ShardInfo] = [shard for part in self.parts for shard in part.shards]
        self.roots = {
            part.folder: os.path.abspath(read_manifest(part.folder)["image_root"])
            for part in self.parts
        }
        """Picture folder of every dataset."""
        self._ends = list(accumulate(map(len, self.parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: SupportsIndex) -> Dialog:
        part, record = self._locate(index.__index__())
        dialog, root = part[record], Path(self.roots[part.folder])
        media = [dialog.image, *(region.depth for region in dialog.regions)]
        for one in media:
            if one is not None and one.path:
                one.path = str(root / one.path)
        return dialog

    def scan(self) -> Iterator[bytes]:
        """All records undecoded, in order, with paths as stored."""
        for part in self.parts:
            yield from part.scan()

    def describe(self, index: int) -> str:
        """Shard and position of a record, for messages."""
        part, record = self._locate(index)
        return part.describe(record)

    def _locate(self, index: int) -> tuple[DialogStore, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        part = bisect_right(self._ends, index)
        return self.parts[part], index - (self._ends[part - 1] if part else 0)
