"""Packing: several dialogues and pictures a row, still as a pure function of (seed, row).

A window of consecutive items of the plan's stream is packed into as few rows as best-fit-decreasing
finds (Johnson 1973, within 11/9 of the least). Which rows a window makes depends on the plan and its
number only; how many, one has to know of all windows before. Those counts are found when they are
first needed and kept beside the sizes.
"""

import hashlib
import logging
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from jaxtyping import Int

from data_pipelines.joined import JoinedStore
from data_pipelines.options import EncodeOptions
from data_pipelines.pack_sizes import item_sizes, load_sizes, save_array, sizes_path
from data_pipelines.plan import Plan
from data_pipelines.shards import DialogStore
from data_pipelines.sized_plan import SizedPlan
from data_pipelines.tokenizer import Tokenizer
from refvlm_jax.batch import BatchSpec

_LOG = logging.getLogger(__name__)
WINDOW = 1024
"""Items packed together: part of the stream's format, as a seed is."""
_PACK = 4  # keeps this use of the seed apart from those of `Plan`
_NO_LIMIT = 1 << 30


def best_fit(sizes: Int[np.ndarray, "n kinds"], limits: Sequence[int]) -> list[list[int]]:
    """Rows of item numbers, every item once, no sum of any kind above its limit.

    Longest first, each item goes where it leaves the least room (in the first kind) and fits.

    Raises:
      ValueError: an item that exceeds a limit alone.
    """
    if len(sizes) and (worst := sizes.max(axis=0) > np.asarray(limits)).any():
        raise ValueError(f"an item exceeds the room of a row in kind {int(worst.argmax())}")
    rows: list[list[int]] = []
    room: list[list[int]] = []
    space: list[int] = []  # of rows with some room left, ascending
    owner: list[int] = []
    table = sizes.tolist()
    for item in np.argsort(-sizes[:, 0], kind="stable").tolist():
        length, *others = table[item]
        at = bisect_left(space, length)
        while at < len(space) and any(map(int.__gt__, others, room[owner[at]])):
            at += 1
        if at < len(space):
            left, row = space.pop(at), owner.pop(at)
            rows[row].append(item)
        else:
            left, row = limits[0], len(rows)
            rows.append([item])
            room.append(list(limits[1:]))
        room[row] = [r - n for r, n in zip(room[row], others, strict=True)]
        at = bisect_left(space, left - length)
        space.insert(at, left - length)
        owner.insert(at, row)
    return rows


def row_limits(spec: BatchSpec, groups: int | None = None) -> tuple[int, ...]:
    """Room of a row by `pack_sizes.KINDS`.

    Args:
      spec: sizes of the batch.
      groups: phrase groups a row, where a part of the model limits them.
    """
    most = _NO_LIMIT if groups is None else groups
    slots = (spec.mask_refs, spec.kpt_refs, spec.depth_refs)
    return (spec.seq_len, spec.images, spec.prompts, spec.refs, most, *slots)


class PackedPlan(SizedPlan[list[list[int]]]):
    """The rows of a packed stream. Safe to use from several threads.

    Args:
      plan: the stream of items.
      sizes: see `pack_sizes.load_sizes`.
      limits: see `row_limits`.
      folder: where row counts of windows are kept; None for nowhere.
      window: items packed together.
    """

    _local = (*SizedPlan._local, "_ends", "_saved")

    def __init__(
        self,
        plan: Plan,
        sizes: np.ndarray,
        limits: tuple[int, ...],
        *,
        folder: Path | None = None,
        window: int = WINDOW,
    ) -> None:
        super().__init__(plan, sizes, limits)
        self.window, self._folder = window, folder
        self._file = folder / f"rows-{self._key()}.npy" if folder else None
        self._open()

    def _open(self) -> None:
        super()._open()
        self._ends = self._load_ends()
        self._saved = len(self._ends)

    def items(self, row: int) -> list[int]:
        """Numbers in the plan's stream of the items of row `row` >= 0."""
        with self._lock:
            while not self._ends or self._ends[-1] <= row:
                self._count_next()
            window = bisect_right(self._ends, row)
            first = self._ends[window - 1] if window else 0
            return self._arranged(window)[row - first]

    def length(self, row: int) -> int | None:
        """All rows are of one length."""
        return None

    def pack_window(self, window: int) -> tuple[list[list[int]], Int[np.ndarray, "items kinds"]]:
        """The rows of a window in their order in the stream, and the room of its items."""
        start = window * self.window
        sizes = item_sizes(self._sizes, self.plan.batch(start, self.window), self.limits)
        rows = best_fit(sizes, self.limits)
        # Best fit leaves long items first and half-empty rows last; a batch should have a mixture.
        order = np.random.default_rng([self.plan.seed, _PACK, window]).permutation(len(rows))
        return [[start + item for item in rows[row]] for row in order], sizes

    def _arrange(self, window: int) -> list[list[int]]:
        return self.pack_window(window)[0]

    def _count_next(self) -> None:
        rows = len(self._arranged(len(self._ends)))
        self._ends.append(rows + (self._ends[-1] if self._ends else 0))
        # Ever rarer, so that all saving together costs as much as the last.
        if self._file and len(self._ends) >= 64 + self._saved * 5 // 4:
            self._saved = len(self._ends)
            try:
                save_array(self._file, np.diff(np.array([0, *self._ends])).astype(np.uint16))
            except OSError as error:
                _LOG.warning("%s: row counts not kept (%s)", self._file, error.strerror)
                self._file = None

    def _load_ends(self) -> list[int]:
        if not self._file or not self._file.is_file():
            return []
        try:
            counts = np.load(self._file, allow_pickle=False)
            if counts.ndim != 1 or counts.dtype != np.uint16 or not counts.all():
                raise ValueError(f"{counts.dtype}{list(counts.shape)}")
        except (OSError, ValueError) as error:
            _LOG.warning("%s: damaged row counts (%s); counting again", self._file, error)
            return []
        return list(accumulate(counts.tolist()))

    def _key(self) -> str:
        """Tells streams with other rows apart."""
        plan = self.plan
        what = [
            plan.seed,
            plan.merge,
            plan.pools,
            plan.shares,
            plan.portions,
            plan.keys,
            self.limits,
            self.window,
        ]
        weight = plan.weight.tobytes().hex()
        return hashlib.sha256(f"{what} {weight}".encode()).hexdigest()[:16]


def pack_plan(
    plan: Plan,
    store: DialogStore | JoinedStore,
    tokenizer: Tokenizer,
    options: EncodeOptions,
    *,
    groups: int | None = None,
    workers: int = 0,
) -> PackedPlan:
    """The packed stream of a plan over a store; see `load_sizes` and `row_limits`."""
    sizes = load_sizes(store, tokenizer, options, workers=workers)
    folder = sizes_path(store, tokenizer, options).parent
    return PackedPlan(plan, sizes, row_limits(options.spec, groups), folder=folder)
