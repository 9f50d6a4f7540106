"""Length buckets: batches of rows of about one length, cut to that length.

The other answer to short dialogues beside packing: every row stays one conversation, and a batch of
short ones is a short batch. The step is compiled once for each length.
"""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from data_pipelines.joined import JoinedStore
from data_pipelines.options import EncodeOptions
from data_pipelines.pack import row_limits
from data_pipelines.pack_sizes import item_sizes, load_sizes
from data_pipelines.plan import Plan
from data_pipelines.shards import DialogStore
from data_pipelines.sized_plan import SizedPlan
from data_pipelines.tokenizer import Tokenizer

WINDOW = 4096
"""Items sorted together, at least: part of the stream's format, as a seed is."""
_BUCKET = 5  # keeps this use of the seed apart from those of `Plan` and `PackedPlan`
_Batch = tuple[list[int], int]


def homogeneous(tokens: Int[np.ndarray, " n"], lengths: Sequence[int], rows: int) -> list[_Batch]:
    """Batches of item numbers with their length: every item once, none longer than its batch.

    Shortest first; what does not fill a batch of its length goes up to the next one, the longest
    items of it.

    Raises:
      ValueError: the items do not fill whole batches, or one is longer than the last length.
    """
    if len(tokens) % rows or (len(tokens) and tokens.max() > lengths[-1]):
        raise ValueError(f"{len(tokens)} items up to {tokens.max()} do not fill batches of {rows}")
    order = np.argsort(tokens, kind="stable")
    parts = order.reshape(-1, rows)
    return [(part.tolist(), lengths[bisect_left(lengths, int(tokens[part[-1]]))]) for part in parts]


class BucketPlan(SizedPlan[list[_Batch]]):
    """The rows of a stream sorted into batches by length. Safe to use from several threads.

    Args:
      plan: the stream of items, one a row.
      sizes: see `pack_sizes.load_sizes`.
      limits: see `pack.row_limits`; the first is the last length.
      lengths: positions of a row, ascending, without the last one.
      rows: rows of a global batch.
    """

    def __init__(
        self,
        plan: Plan,
        sizes: np.ndarray,
        limits: tuple[int, ...],
        lengths: Sequence[int],
        rows: int,
    ) -> None:
        super().__init__(plan, sizes, limits)
        self.batch_rows = rows
        self.lengths = (*lengths, limits[0])
        self.window = -(-WINDOW // rows) * rows
        self._open()

    def items(self, row: int) -> list[int]:
        """Number in the plan's stream of the item of row `row` >= 0."""
        return [self._batch(row)[0][row % self.batch_rows]]

    def length(self, row: int) -> int:
        """Positions of the rows of the batch that row `row` belongs to."""
        return self._batch(row)[1]

    def _batch(self, row: int) -> _Batch:
        window, place = divmod(row, self.window)
        return self._arranged(window)[place // self.batch_rows]

    def _arrange(self, window: int) -> list[_Batch]:
        start = window * self.window
        sizes = item_sizes(self._sizes, self.plan.batch(start, self.window), self.limits)
        batches = homogeneous(sizes[:, 0], self.lengths, self.batch_rows)
        rng = np.random.default_rng([self.plan.seed, _BUCKET, window])
        return [
            ([start + item for item in rng.permutation(items).tolist()], length)
            for items, length in (batches[k] for k in rng.permutation(len(batches)))
        ]


def bucket_plan(
    plan: Plan,
    store: DialogStore | JoinedStore,
    tokenizer: Tokenizer,
    options: EncodeOptions,
    lengths: Sequence[int],
    rows: int,
    *,
    workers: int = 0,
) -> BucketPlan:
    """The bucketed stream of a plan over a store; see `load_sizes` and `BucketPlan`."""
    sizes = load_sizes(store, tokenizer, options, workers=workers)
    return BucketPlan(plan, sizes, row_limits(options.spec), lengths, rows)
