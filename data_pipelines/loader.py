"""The loader: the global sample stream as batches, the same for any number of hosts and workers.

The only data state is the step. Row j of step s on host h of H is global row
s * B + h * B / H + j, and everything random about a row is keyed by (seed, global row).
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import SupportsIndex

import grain
import numpy as np
from absl import flags

from data_pipelines.encode import EncodeOptions, Row, encode_row
from data_pipelines.images import Decoding
from data_pipelines.join import join_rows, within
from data_pipelines.joined import JoinedStore
from data_pipelines.opening import RowPlan
from data_pipelines.permute import mix
from data_pipelines.records import Dialog
from data_pipelines.shards import DialogStore
from data_pipelines.squares import SquareReader
from data_pipelines.tokenizer import Tokenizer
from refvlm_jax.batch import Batch

_LOG = logging.getLogger(__name__)
_ATTEMPTS = 16
_REPLACEMENTS = 1 << 40  # replacement rows start here, where no run gets by counting
_SAMPLE_IDS = 1 << 31  # `Batch.sample_id` is an int32
_ENDLESS = 1 << 48


class LoaderError(ValueError):
    """The stream yields no usable row, or cannot be split over the processes."""


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """Which rows of the stream this process reads, and with how many hands."""

    batch_size: int
    """Rows of the global batch."""
    seed: int = 0
    """Key of everything random inside a row."""
    workers: int = 0
    """Worker processes; 0 reads in threads of this process."""
    threads: int = 4
    """Threads of this process, or of each worker."""
    process_index: int = 0
    process_count: int = 1
    start_step: int = 0
    cache_bytes: int = 256 << 20
    """Memory for decoded pictures in this process, or in each worker."""
    decoding: Decoding = field(default_factory=Decoding)
    """How pictures are decoded."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.process_count:
            raise LoaderError(
                f"batch_size {self.batch_size} cannot be split evenly over {self.process_count} "
                "processes; make data.batch_size a multiple of them"
            )

    @property
    def local_rows(self) -> int:
        """Rows of a batch that this process reads."""
        return self.batch_size // self.process_count

    def global_row(self, local: int) -> int:
        """Global row of the `local`-th row this process reads."""
        step, row = divmod(local, self.local_rows)
        start = (self.start_step + step) * self.batch_size
        return start + self.process_index * self.local_rows + row


@dataclass
class RowReport:
    """What happened while a row was made."""

    drops: list[str] = field(default_factory=list)
    """Why items that the row should have held could not be used."""
    counts: Counter[str] = field(default_factory=Counter)
    """What was cut off, see `encode.encode_row`."""
    read: Counter[str] = field(default_factory=Counter)
    """Dialogues of the row by `task/T17` and by `source/coco`."""


class RowSource:
    """Random access to the rows of this process; the source of the grain pipeline."""

    def __init__(
        self,
        plan: RowPlan,
        store: DialogStore | JoinedStore,
        tokenizer: Tokenizer,
        image_root: Path,
        options: EncodeOptions,
        config: LoaderConfig,
    ) -> None:
        self._plan, self._store, self._tokenizer = plan, store, tokenizer
        self._options, self._config = options, config
        self._squares = SquareReader(
            image_root, options.spec.image_size, config.cache_bytes, config.decoding
        )

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: SupportsIndex) -> int:
        return self._config.global_row(index.__index__())

    def __repr__(self) -> str:
        return f"RowSource({self._config})"

    def make(self, row: int) -> tuple[Row, RowReport]:
        """The arrays of a global row; a row that cannot be made is replaced by another one.

        Raises:
          LoaderError: many replacements in a row cannot be made either.
        """
        report, options = RowReport(), self._options
        if (length := self._plan.length(row)) is not None:
            options = replace(options, spec=replace(options.spec, seq_len=length))
        for attempt in range(_ATTEMPTS):
            items = [self._replacement(row, attempt)] if attempt else self._plan.items(row)
            parts = [part for item in items if (part := self._usable(item, report, options))]
            if parts:
                arrays = parts[0] if len(parts) == 1 else join_rows(parts, options.spec)
                arrays["sample_id"] = np.asarray(row % _SAMPLE_IDS, np.int32)
                if not self._plan.decodes(row):
                    arrays["ref_valid"] = np.zeros_like(arrays["ref_valid"])
                return arrays, report
        raise LoaderError(
            f"row {row}: none of {_ATTEMPTS} candidates can be used, the last one because "
            f"{report.drops[-1]}"
        )

    def _usable(self, item: int, report: RowReport, options: EncodeOptions) -> Row | None:
        """The arrays of an item; None, and the reason in `report`, when it cannot be used."""
        counts: Counter[str] = Counter()
        try:
            row, dialogs = self._fitted(item, counts, options)
        except ValueError as error:  # ImageError, EncodeError, ShardError name the culprit
            report.drops.append(str(error))
            return None
        report.counts.update(counts)
        report.read.update(f"task/{dialog.task_id}" for dialog in dialogs)
        report.read.update(f"source/{dialog.source}" for dialog in dialogs)
        return row

    def _fitted(
        self, item: int, counts: Counter[str], options: EncodeOptions
    ) -> tuple[Row, list[Dialog]]:
        """The arrays of an item within the room it was given, and its dialogues."""
        dialogs = [self._store[record] for record in self._plan.rows(item)]
        rng = np.random.default_rng([self._config.seed, item])
        row = self._encode(dialogs, options, rng, counts)
        room = self._plan.room(item)
        if room is None or within(row, room):
            return row, dialogs
        # Rarely, the template that has most characters has not most tokens: ask with that one,
        # for which room was kept.
        counts.clear()
        longest = replace(options, longest_template=True)
        return self._encode(dialogs, longest, None, counts), dialogs

    def _encode(
        self,
        dialogs: list[Dialog],
        options: EncodeOptions,
        rng: np.random.Generator | None,
        counts: Counter[str],
    ) -> Row:
        root, words = self._squares.root, self._tokenizer
        return encode_row(dialogs, root, words, options, rng, squares=self._squares, counts=counts)

    def _replacement(self, row: int, attempt: int) -> int:
        return _REPLACEMENTS + mix(self._config.seed, row, attempt) % _REPLACEMENTS


def _stack(rows: Sequence[tuple[Row, RowReport]]) -> tuple[Row, list[RowReport]]:
    arrays = {name: np.stack([row[name] for row, _ in rows]) for name in rows[0][0]}
    return arrays, [report for _, report in rows]


class Loader(Iterator[Batch]):
    """Endless batches of NumPy arrays with the rows of this process; see `make_loader`."""

    def __init__(self, source: RowSource, config: LoaderConfig) -> None:
        self.drops: Counter[str] = Counter()
        """Reason, naming the record -> rows replaced because of it, in the batches handed out."""
        self.counts: Counter[str] = Counter()
        """What `encode_row` cut off, in the batches handed out."""
        self.read: Counter[str] = Counter()
        """Dialogues by `task/T17` and by `source/coco`, in the batches handed out."""
        self._step, self._config = config.start_step, config
        rows = grain.MapDataset.source(source).map(source.make)
        batches = rows.batch(config.local_rows, batch_fn=_stack)
        # A batch holds megabytes: one waiting for each thread is enough.
        ahead = max(1, config.threads)
        data = batches.to_iter_dataset(grain.ReadOptions(config.threads, ahead))
        if config.workers:
            if not flags.FLAGS.is_parsed():  # grain hands absl's flags to its workers
                flags.FLAGS.mark_as_parsed()
            data = data.mp_prefetch(grain.MultiprocessingOptions(num_workers=config.workers))
        self._batches = iter(data)

    def __next__(self) -> Batch:
        arrays, reports = next(self._batches)
        for local, report in enumerate(reports):
            self.counts.update(report.counts)
            self.read.update(report.read)
            for reason in report.drops:
                self._report(local, reason)
        self._step += 1
        return Batch.from_dict(arrays)

    def tally(self) -> dict[str, int]:
        """What this process has read and lost since it began, by name, for a record of the run."""
        lost = {f"lost/{name}": number for name, number in self.counts.items()}
        return {**self.read, **lost, "lost/rows": sum(self.drops.values())}

    def _report(self, local: int, reason: str) -> None:
        if reason not in self.drops:
            rows = self._config.batch_size
            row = self._step * rows + self._config.process_index * self._config.local_rows + local
            _LOG.warning("row %d replaced: %s", row, reason)
        self.drops[reason] += 1

    def close(self) -> None:
        """Ends reading threads and worker processes."""
        if callable(close := getattr(self._batches, "close", None)):
            close()


def make_loader(
    plan: RowPlan,
    store: DialogStore | JoinedStore,
    tokenizer: Tokenizer,
    image_root: Path,
    options: EncodeOptions,
    config: LoaderConfig,
) -> Loader:
    """Opens the stream at `config.start_step`.

    Concatenated over processes, its batches depend on the plan, the seed and the step only. Rows
    that cannot be made are replaced, logged at their first occurrence and counted in `drops`.
    """
    return Loader(RowSource(plan, store, tokenizer, image_root, options, config), config)
