"""The grain loader: global row number to batches, identical for any number of hosts and workers.

The whole data state is one integer, the step. Row j of step s on host h of H is global row
s * B + h * B / H + j; everything random about it is keyed by (seed, global row).
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grain
import numpy as np
from absl import flags

from data_pipelines.encode import EncodeError, EncodeOptions, Row, encode_row
from data_pipelines.images import ImageError
from data_pipelines.plan import Plan
from data_pipelines.shards import DialogStore, ShardError
from data_pipelines.tokenizer import Tokenizer
from refvlm_jax.batch import Batch

_LOG = logging.getLogger(__name__)
_ATTEMPTS = 8
# Replacement rows are drawn far from all real ones: 2^40 rows are never reached.
_REPLACEMENT = 1 << 40
_ENDLESS = 1 << 40


@dataclass(frozen=True)
class LoaderConfig:
    """Which part of the stream this process reads, and with what."""

    batch_size: int
    """Rows of the global batch."""
    seed: int = 0
    workers: int = 0
    threads: int = 4
    process_index: int = 0
    process_count: int = 1
    start_step: int = 0

    @property
    def local_rows(self) -> int:
        """Rows of this process."""
        if self.batch_size % self.process_count:
            raise ValueError(
                f"data.batch_size={self.batch_size} cannot be split over {self.process_count} "
                "processes; choose a multiple"
            )
        return self.batch_size // self.process_count


class RowSource:
    """Random access by the row number of this process, starting at its start step."""

    def __init__(self, config: LoaderConfig):
        self.config = config

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int) -> int:
        """Global row number."""
        step, row = divmod(index, self.config.local_rows)
        step += self.config.start_step
        c = self.config
        return step * c.batch_size + c.process_index * c.local_rows + row


class RenderRow(grain.transforms.Map):
    """Global row number -> arrays of one row."""

    def __init__(
        self,
        plan: Plan,
        store: DialogStore,
        tokenizer: Tokenizer,
        image_root: Path,
        options: EncodeOptions,
        seed: int,
    ):
        self.plan, self.store, self.tokenizer = plan, store, tokenizer
        self.image_root, self.options, self.seed = image_root, options, seed

    def map(self, row: int) -> Row:
        """Renders the row; one that cannot be rendered is replaced, said and never silent."""
        for attempt in range(_ATTEMPTS):
            drawn = row if attempt == 0 else _REPLACEMENT + row * _ATTEMPTS + attempt
            try:
                records = self.plan.rows(drawn)
                rng = np.random.default_rng([self.seed, drawn])
                dialogs = [self.store[record] for record in records]
                made = encode_row(dialogs, self.image_root, self.tokenizer, self.options, rng)
            except (ImageError, EncodeError, ShardError) as error:
                _LOG.warning("row %d dropped and replaced: %s", row, error)
                continue
            made["sample_id"] = np.asarray(row % (1 << 31), np.int32)
            return made
        raise ShardError(
            f"row {row}: {_ATTEMPTS} draws in a row could not be read; see the messages above and "
            "check data.path and the picture folder"
        )


class Loader:
    """An endless iterator of this process's batches; close it when done."""

    def __init__(self, rows: grain.MapDataset, config: LoaderConfig):
        batches = rows.batch(config.local_rows, drop_remainder=True)
        options = grain.ReadOptions(
            num_threads=config.threads, prefetch_buffer_size=max(4, 2 * config.threads)
        )
        dataset = batches.to_iter_dataset(options)
        if config.workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl flags
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=config.workers, per_worker_buffer_size=2)
            )
        self._iterator = iter(dataset)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return Batch.from_dict(next(self._iterator))

    def close(self) -> None:
        """Stops the reading threads and worker processes."""
        if callable(close := getattr(self._iterator, "close", None)):
            close()


def make_loader(
    plan: Plan,
    store: DialogStore,
    tokenizer: Tokenizer,
    image_root: Path,
    options: EncodeOptions,
    config: LoaderConfig,
) -> Loader:
    """Opens the stream at `config.start_step`."""
    render = RenderRow(plan, store, tokenizer, image_root, options, config.seed)
    return Loader(grain.MapDataset.source(RowSource(config)).map(render), config)
