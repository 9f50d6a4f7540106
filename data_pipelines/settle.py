"""What can be judged only when all entries of a build are there: uids of several entries."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from data_pipelines.entries import HASHES, Part, hashes_of, parts_of, tally_of, write_part
from data_pipelines.records import decode
from data_pipelines.shards import WRITER_OPTIONS


def settle(folders: Sequence[Path]) -> None:
    """Removes records whose uid an earlier entry has already (V01), shard by shard.

    Doing it again changes nothing, so a kill in between does no harm.
    """
    parts = [parts_of(folder) for folder in folders]
    uids = [hashes_of(f, p)["uid"] for f, p in zip(folders, parts, strict=True)]
    twice = repeated(np.concatenate(uids))
    if not twice.any():
        return
    start = 0
    for folder, own in zip(folders, parts, strict=True):
        for part in own:
            drop = twice[start : start + part.shard.records]
            start += part.shard.records
            if drop.any():
                _without(folder, part, drop)


def repeated(values: np.ndarray) -> np.ndarray:
    """bool[n]: the value occurs earlier."""
    later = np.ones(len(values), np.bool_)
    later[np.unique(values, return_index=True)[1]] = False
    return later


def _without(folder: Path, part: Part, drop: np.ndarray) -> None:
    """Writes a shard again without some of its records, its counts made anew."""
    path = folder / part.shard.name
    reader = ArrayRecordReader(str(path))
    records = reader.read_all()
    reader.close()
    hashes = hashes_of(folder, [part])
    tally = tally_of(part)
    growing = folder / f".{path.stem}.growing"
    writer = ArrayRecordWriter(str(growing), WRITER_OPTIONS)
    for k, data in enumerate(records):
        dialog = decode(data)
        if drop[k]:
            tally.drops.add("V01", dialog.uid, "another entry of the recipe has this uid already")
        else:
            writer.write(data)
            tally.count(dialog)
            for name in HASHES:
                getattr(tally, name).append(int(hashes[name][k]))
    writer.close()
    write_part(path.with_suffix(""), growing, part.next, tally)
