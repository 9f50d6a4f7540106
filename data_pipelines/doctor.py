"""Whether a built dataset is sound: checksums, counts, schema, and a sample of it decoded."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from data_pipelines.encode import EncodeOptions, encode_row
from data_pipelines.images import load_image
from data_pipelines.manifest import ShardError, ShardInfo, file_sha256, read_manifest
from data_pipelines.permute import permuted
from data_pipelines.records import Dialog
from data_pipelines.shards import DialogStore
from data_pipelines.tokenizer import Tokenizer
from data_pipelines.validate import validate
from refvlm_jax.batch import BatchSpec

_NAMED = 5  # problems spelt out for each check
# Room for any record; pictures and masks themselves are not looked at.
ROOMY = BatchSpec(
    seq_len=8192, image_size=64, prompts=64, refs=400, mask_refs=400, mask_size=32,
    kpt_refs=400, depth_refs=8, depth_size=32,
)  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    looked_at: int
    problems: list[str]
    """The first ones, each with its place."""
    bad: int = 0
    """How many there are."""

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.bad


def examine(folder: Path, tokenizer: Tokenizer, *, sample: int = 200) -> Iterator[Check]:
    """Looks a dataset through, from the outside in; stops where the next look has no basis.

    Args:
      sample: records that are decoded, drawn evenly from the whole dataset.
    """
    folder = Path(folder)
    try:
        manifest = read_manifest(folder)
    except ShardError as error:
        yield Check("manifest", 1, [str(error)], 1)
        return
    shards: list[ShardInfo] = [s for own in manifest["stores"].values() for s in own]
    yield Check("manifest", 1, [])
    sums = _each("checksums", shards, lambda shard: _checksum(folder, shard))
    yield sums
    if not sums.ok:
        return
    yield _each("record counts of shards", shards, lambda shard: _length(folder, shard))
    store = DialogStore(folder)
    total, counted = len(store), sum(manifest["counts"].values())
    wrong = (
        [f"{folder}: {total} records, the manifest counts {counted}"] if total != counted else []
    )
    yield Check("counts", total, wrong, len(wrong))
    chosen = [permuted(k, total, 0) for k in range(min(sample, total))]
    dialogs: dict[int, Dialog] = {}

    def schema(index: int) -> str | None:
        dialogs[index] = store[index]
        errors = [f for f in validate(dialogs[index]) if f.level == "E"]
        return f"{store.describe(index)}: {errors[0].code} {errors[0].message}" if errors else None

    yield _each("schema", chosen, schema)
    root = Path(manifest["image_root"])
    yield _each("pictures", sorted(dialogs), lambda index: _picture(dialogs[index], root))
    options = EncodeOptions(spec=ROOMY)
    yield _each(
        "rows", sorted(dialogs), lambda index: _row(dialogs[index], root, tokenizer, options)
    )
    yield _tasks(dialogs, manifest["counts"], sample >= total)


def _each(name: str, things: list, look: Callable) -> Check:
    problems = []
    for thing in things:
        try:
            found = look(thing)
        except (ValueError, OSError, RuntimeError, IndexError) as error:
            found = str(error)
        if found:
            problems.append(found)
    return Check(name, len(things), problems[:_NAMED], len(problems))


def _checksum(folder: Path, shard: ShardInfo) -> str | None:
    path = folder / shard.name
    return None if file_sha256(path) == shard.sha256 else (
        f"{path}: does not match its checksum; copy the file again or build the dataset again"
    )  # fmt: skip


def _length(folder: Path, shard: ShardInfo) -> str | None:
    reader = ArrayRecordReader(str(folder / shard.name))
    found = reader.num_records()
    reader.close()
    if found == shard.records:
        return None
    return f"{folder / shard.name}: {found} records, the manifest says {shard.records}"


def _picture(dialog: Dialog, root: Path) -> str | None:
    if dialog.image is not None:
        load_image(dialog.image, root)
    return None


def _row(dialog: Dialog, root: Path, tokenizer: Tokenizer, options: EncodeOptions) -> str | None:
    row = encode_row([dialog], root, tokenizer, options, np.random.default_rng(0))
    return None if (row["labels"] >= 0).any() else f"{dialog.uid}: nothing in it is supervised"


def _tasks(dialogs: dict[int, Dialog], counts: dict[str, int], complete: bool) -> Check:
    """Tasks of the sample against those of the manifest; counts too where all were read."""
    found = Counter(dialog.task_id for dialog in dialogs.values())
    problems = [f"task {task} is not in the manifest" for task in sorted(set(found) - set(counts))]
    if complete:
        problems += [
            f"task {task}: {found[task]} records, the manifest says {number}"
            for task, number in sorted(counts.items())
            if found[task] != number
        ]
    return Check("tasks", len(dialogs), problems[:_NAMED], len(problems))
