"""One entry of a recipe becomes shards: checked, counted, and resumable after a kill.

Every shard has a JSON file beside it (checksums, counts, where to go on) and an NPY file (hashes of
its records). A shard counts as finished when its JSON file is there and its checksums are right.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from data_pipelines.depths import depth_problem
from data_pipelines.families import Converter, converter_of
from data_pipelines.manifest import ShardInfo, file_sha256
from data_pipelines.pictures import NO_PICTURE, Pictures, seen_as
from data_pipelines.recipes import BuildRecipe
from data_pipelines.records import Dialog, encode
from data_pipelines.shards import WRITER_OPTIONS
from data_pipelines.sources.base import Drops
from data_pipelines.text_rules import split_turns
from data_pipelines.validate import repair, validate

SAMPLES = 3  # records of each task that the report draws
HASHES = ("uid", "content", "seen", "file")
_LINES = 200  # dropped records named in the report, for each shard
_STEP = 64  # records between two reports of progress


@dataclass(frozen=True)
class Job:
    """What a worker needs to know about one entry."""

    recipe: BuildRecipe
    number: int
    """Place of the entry in the recipe."""
    folder: Path
    """Where its shards grow."""
    limit: int | None
    records_per_shard: int


@dataclass
class Part:
    """One finished shard and what was counted while it was written."""

    shard: ShardInfo
    hashes: str
    """Checksum of the file of hashes."""
    next: int
    """Candidates of the converter that are settled once the shard is there."""
    table: list[tuple[str, str, str, int]]
    """Rows (source, task, what, number): dialogues, turns, references by unit, prompts by kind."""
    dropped: dict[str, int]
    """Records by validation code."""
    flagged: dict[str, int]
    """Records kept with a warning, by validation code."""
    lines: list[str]
    samples: list[tuple[str, int]]
    """(task, record of the shard) of the first ones of every task."""

    @classmethod
    def read(cls, path: Path) -> "Part":
        """A part from its JSON file."""
        content = json.loads(path.read_text(encoding="utf-8"))
        content["shard"] = ShardInfo(**content["shard"])
        content["table"] = [tuple(row) for row in content["table"]]
        content["samples"] = [tuple(row) for row in content["samples"]]
        return cls(**content)

    def write(self, path: Path) -> None:
        """Writes the JSON file atomically."""
        write_json(path, asdict(self))


@dataclass
class Entry:
    """A finished entry."""

    parts: int
    dropped: dict[str, int]
    """Records the converter itself dropped, by validation code."""
    lines: list[str]


def convert_entry(
    job: Job, pictures: Pictures, held_out: frozenset[int], tell: Callable[[int, int], None]
) -> None:
    """Writes the shards of an entry that are not there yet, then `entry.json`.

    Args:
      tell: receives candidates seen and records kept, every now and then.

    Raises:
      SourceError: a native file is missing or of another kind.
    """
    if _is_finished(job.folder):
        return
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "entry.json").unlink(missing_ok=True)
    parts, drops = parts_of(job.folder), Drops()
    stream = _candidates(job, drops)
    done = parts[-1].next if parts else 0
    for _ in islice(stream, done):  # settled by the shards that are there
        pass
    number = len(parts)
    while (part := _write_part(job, number, done, stream, pictures, held_out, tell)) is not None:
        done, number = part.next, number + 1
    content = Entry(parts=number, dropped=dict(drops.counts), lines=drops.lines[:_LINES])
    write_json(job.folder / "entry.json", asdict(content))


def parts_of(folder: Path) -> list[Part]:
    """The finished shards of an entry, up to the first that is missing or damaged."""
    parts: list[Part] = []
    while True:
        stem = folder / f"{len(parts):05d}"
        try:
            part = Part.read(stem.with_suffix(".json"))
            intact = (
                file_sha256(folder / part.shard.name) == part.shard.sha256
                and file_sha256(stem.with_suffix(".npy")) == part.hashes
            )
        except (OSError, ValueError, KeyError, TypeError):
            return parts
        if not intact:
            return parts
        parts.append(part)


def hashes_of(folder: Path, parts: Sequence[Part]) -> dict[str, np.ndarray]:
    """`uid`, `content`, `seen` and `file` (of the picture): uint64 of every record of shards."""
    read = [np.load((folder / part.shard.name).with_suffix(".npy")) for part in parts]
    columns = np.concatenate([np.zeros((len(HASHES), 0), np.uint64), *read], axis=1)
    return dict(zip(HASHES, columns, strict=True))


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, path)


def read_entry(folder: Path) -> Entry:
    """The summary of a finished entry."""
    return Entry(**json.loads((folder / "entry.json").read_text(encoding="utf-8")))


def _is_finished(folder: Path) -> bool:
    try:
        return read_entry(folder).parts == len(parts_of(folder))
    except (OSError, ValueError, TypeError):
        return False


def _candidates(job: Job, drops: Drops) -> Iterator[Dialog]:
    """What the converter yields, each uid once."""
    convert: Converter = converter_of(job.recipe.entries[job.number], job.recipe)
    seen: set[int] = set()

    def once() -> Iterator[Dialog]:
        for dialog in convert(drops):
            key = hash64(dialog.uid)
            if key in seen:
                drops.add("V01", dialog.uid, "this uid occurs twice; native ids must be unique")
                continue
            seen.add(key)
            yield dialog

    return islice(once(), job.limit)


@dataclass
class Tally:
    """Counts of a shard while it grows."""

    table: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    flagged: Counter[str] = field(default_factory=Counter)
    drops: Drops = field(default_factory=Drops)
    samples: list[tuple[str, int]] = field(default_factory=list)
    uid: list[int] = field(default_factory=list)
    content: list[int] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)
    file: list[int] = field(default_factory=list)

    def add(self, dialog: Dialog, digest: int) -> None:
        """Counts and hashes a record that is kept."""
        self.count(dialog)
        self.uid.append(hash64(dialog.uid))
        self.content.append(content_hash(dialog, digest))
        self.seen.append(seen_as(digest, dialog) if dialog.image else NO_PICTURE)
        self.file.append(hash64(dialog.image.path) if dialog.image else NO_PICTURE)

    def count(self, dialog: Dialog) -> None:
        """Counts a record that is kept, before its hashes are appended."""
        key = (dialog.source, dialog.task_id)
        if sum(task == dialog.task_id for task, _ in self.samples) < SAMPLES:
            self.samples.append((dialog.task_id, len(self.uid)))
        self.table[(*key, "dialogs")] += 1
        self.table[(*key, "turns")] += len(dialog.turns)
        for turn in dialog.turns:
            for span in turn.spans:
                self.table[(*key, span.unit.text)] += len(span.targets)
            for prompt in turn.prompts:
                self.table[(*key, f"{prompt.kind.name.lower()} prompt")] += 1


def _write_part(
    job: Job,
    number: int,
    done: int,
    stream: Iterator[Dialog],
    pictures: Pictures,
    held_out: frozenset[int],
    tell: Callable[[int, int], None],
) -> Part | None:
    """The next shard; None when the stream is at its end."""
    tally, taken, told = Tally(), 0, (0, 0)
    stem = job.folder / f"{number:05d}"
    growing = job.folder / f".{stem.name}.growing"
    writer = ArrayRecordWriter(str(growing), WRITER_OPTIONS)
    try:
        while len(tally.uid) < job.records_per_shard:
            if (dialog := next(stream, None)) is None:
                break
            taken += 1
            for fixed, digest in _kept(dialog, tally, pictures, held_out):
                writer.write(encode(fixed))
                tally.add(fixed, digest)
            if taken - told[0] >= _STEP:
                tell(taken - told[0], len(tally.uid) - told[1])
                told = (taken, len(tally.uid))
    finally:
        writer.close()
    tell(taken - told[0], len(tally.uid) - told[1])
    if not taken:
        growing.unlink()
        return None
    return write_part(stem, growing, done + taken, tally)


def tally_of(part: Part) -> Tally:
    """What a shard lost and flagged so far, to write it again."""
    tally = Tally(flagged=Counter(part.flagged))
    tally.drops.counts.update(part.dropped)
    tally.drops.lines += part.lines
    return tally


def write_part(stem: Path, growing: Path, done: int, tally: Tally) -> Part:
    """Gives a grown shard its name and writes its hashes, then its JSON file."""
    hashes, shard = stem.with_suffix(".npy"), stem.with_suffix(".array_record")
    np.save(hashes, np.array([getattr(tally, name) for name in HASHES], np.uint64))
    os.replace(growing, shard)
    part = Part(
        shard=ShardInfo(
            name=shard.name,
            records=len(tally.uid),
            bytes=shard.stat().st_size,
            sha256=file_sha256(shard),
        ),
        hashes=file_sha256(hashes),
        next=done,
        table=[(*key, n) for key, n in sorted(tally.table.items())],
        dropped=dict(sorted(tally.drops.counts.items())),
        flagged=dict(sorted(tally.flagged.items())),
        lines=tally.drops.lines[:_LINES],
        samples=tally.samples,
    )
    part.write(stem.with_suffix(".json"))
    return part


def _kept(
    dialog: Dialog, tally: Tally, pictures: Pictures, held_out: frozenset[int]
) -> list[tuple[Dialog, int]]:
    """The records as they are written, each with the digest of its picture; none when it is dropped."""
    drops, digest = tally.drops, NO_PICTURE
    if dialog.image is not None:
        verdict = pictures.check(dialog.image)
        if verdict.problem:
            drops.add(verdict.code, dialog.uid, verdict.problem)
            return []
        digest = verdict.digest
        if seen_as(digest, dialog) in held_out:
            drops.add("V24", dialog.uid, "its picture is evaluated on in a task of this kind")
            return []
        if verdict.turned:
            tally.flagged["V22"] += 1
    pieces = split_turns(dialog)
    if len(pieces) > 1:
        tally.flagged["V16"] += 1
    fixed = [_sound(piece, tally, pictures.root) for piece in pieces]
    return [(piece, digest) for piece in fixed if piece is not None]


def _sound(dialog: Dialog, tally: Tally, root: Path) -> Dialog | None:
    """A record put right as far as it can be; None when it breaks a rule."""
    fixed = repair(dialog)
    findings = validate(fixed)
    if error := next((f for f in findings if f.level == "E"), None):
        tally.drops.add(error.code, dialog.uid, error.message)
        return None
    if message := _depth_problem(fixed, root):
        tally.drops.add("V09", dialog.uid, message)
        return None
    tally.flagged.update({finding.code for finding in findings})
    return fixed


def _depth_problem(dialog: Dialog, root: Path) -> str | None:
    """Why a depth map of a dialogue cannot be used, or None."""
    if dialog.image is None:
        return None
    maps = (region.depth for region in dialog.regions if region.depth is not None)
    problems = (depth_problem(found, dialog.image, root) for found in maps)
    return next((problem for problem in problems if problem), None)


def hash64(text: str) -> int:
    """A 64-bit hash, the same on every machine."""
    # Half a surrogate pair is no text, but its record must get as far as the rule that drops it.
    data = text.encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def content_hash(dialog: Dialog, digest: int) -> int:
    """Equal for dialogues of a source that ask and answer the same about the same picture."""
    turns = [vars(turn) | {"references": []} for turn in dialog.turns]
    whole = [dialog.source, digest, turns, dialog.regions]
    content = msgpack.packb(whole, default=vars, use_bin_type=True)
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
