"""The global sample stream: which dialogues make up row number i, as a pure function of (seed, i).

No state, no lists of the whole stream: any host can compute any row, whatever the number of hosts.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data_pipelines.catalog import Catalog
from data_pipelines.index import NOT_TRAINABLE, Index, load_index
from data_pipelines.joined import JoinedStore
from data_pipelines.permute import mix, permuted_many
from data_pipelines.shards import DialogStore

_LOG = logging.getLogger(__name__)
_BLOCK = 4096  # rows in which every pool has exactly its share
_SCHEDULE, _SHUFFLE, _MERGE = 1, 2, 3  # keep the uses of one seed apart


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An infinite stream of rows over the records of one store.

    Anchors are drawn from pools (one a weighted task, or a single one over everything), each pool
    in a fresh permutation every time it is used up. An anchor then takes companions about the same
    picture along.
    """

    seed: int
    merge: int
    """Dialogues a row, at most."""
    index: Index
    """Where records of a task and of a picture are."""
    pools: tuple[str, ...]
    """Task of each pool; empty for the single pool of everything."""
    shares: tuple[int, ...]
    """Anchors of each pool in a block of rows."""
    portions: tuple[int, ...] = ()
    """Records of each pool that are ever drawn; empty for all."""
    keys: tuple[int, ...] = ()
    """Key of the permutation whose first elements are the portion of each pool."""
    weight: np.ndarray
    """float64[256] by `Index.task`: chance of a record to be taken along, relative to others."""

    def items(self, row: int) -> list[int]:
        """Numbers in the stream of what row `row` holds: without packing, itself."""
        return [row]

    def room(self, item: int) -> list[int] | None:
        """Room of an item in its row; None for all of it."""
        return None

    def length(self, row: int) -> int | None:
        """All rows are of one length."""
        return None

    def decodes(self, row: int) -> bool:
        """References of every row are learnt."""
        return True

    def rows(self, index: int) -> list[int]:
        """Record numbers of row `index` >= 0 in the order in which they are asked."""
        anchor = self._anchor(index)
        if self.merge == 1:
            return [anchor]
        rng = np.random.default_rng([self.seed, _MERGE, index])
        chosen = [anchor, *self._companions(anchor, rng)]
        return [chosen[k] for k in rng.permutation(len(chosen))]

    def _anchor(self, index: int) -> int:
        block, offset = divmod(index, sum(self.shares))
        schedule, rank = _block_schedule(self.seed, block, self.shares)
        pool = int(schedule[offset])
        position = block * self.shares[pool] + int(rank[offset])
        return int(self._drawn(pool, np.array([position]))[0])

    def batch(self, start: int, count: int) -> list[list[int]]:
        """`rows` of the indices from `start` on, faster than one by one."""
        if self.merge > 1:
            return [self.rows(index) for index in range(start, start + count)]
        index = np.arange(start, start + count)
        total = sum(self.shares)
        block, offset = index // total, index % total
        anchors = np.empty(count, np.int64)
        for number in np.unique(block).tolist():
            schedule, rank = _block_schedule(self.seed, number, self.shares)
            own = np.flatnonzero(block == number)
            pools, ranks = schedule[offset[own]], rank[offset[own]]
            for pool in np.unique(pools).tolist():
                drawn = pools == pool
                position = number * self.shares[pool] + ranks[drawn]
                anchors[own[drawn]] = self._drawn(pool, position)
        return [[anchor] for anchor in anchors.tolist()]

    def _drawn(self, pool: int, position: np.ndarray) -> np.ndarray:
        """Records at positions of a pool's stream."""
        records = self._records(pool)
        size = self.portions[pool] if self.portions else len(records)
        epoch, place = position // size, position % size
        result = np.empty(len(position), np.int64)
        for number in np.unique(epoch).tolist():
            own = epoch == number
            key = mix(self.seed, _SHUFFLE, pool, number)
            found = permuted_many(place[own], size, key)
            if size < len(records):
                found = permuted_many(found, len(records), self.keys[pool])
            result[own] = found if isinstance(records, range) else records[found]
        return result

    def _records(self, pool: int) -> np.ndarray | range:
        return self.index.pool(self.pools[pool]) if self.pools else self.index.all_records()

    def _companions(self, anchor: int, rng: np.random.Generator) -> list[int]:
        index = self.index
        picture = int(index.picture[anchor])
        members = np.asarray(index.members[index.first[picture] : index.first[picture + 1]])
        weight = np.where(members == anchor, 0.0, self.weight[index.task[members]])
        count = min(self.merge - 1, int(np.count_nonzero(weight)))
        if not count:
            return []
        chosen = rng.choice(members, size=count, replace=False, p=weight / weight.sum())
        return [int(record) for record in chosen]


@lru_cache(maxsize=8)
def _block_schedule(
    seed: int, block: int, shares: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Pool of every row of a block, and how many rows of the block had that pool before."""
    schedule = np.repeat(np.arange(len(shares)), shares)
    np.random.default_rng([seed, _SCHEDULE, block]).shuffle(schedule)
    by_pool = np.argsort(schedule, kind="stable")
    rank = np.empty_like(schedule)
    rank[by_pool] = np.concatenate([np.arange(share) for share in shares])
    return schedule, rank


def build_plan(
    store: DialogStore | JoinedStore,
    *,
    weights: Mapping[str, float] | None = None,
    merge: int = 1,
    seed: int = 0,
) -> Plan:
    """Plans the stream of a store.

    Args:
      store: the records; those marked `eval_only` are left out.
      weights: task id -> share of the rows that are anchored in that task, in any scale; tasks
        that are not named are left out. Empty or None: every record equally often.
      merge: dialogues about one picture put into a row, at most.
      seed: fixes the stream.

    Raises:
      ShardError: a record cannot be read.
      ValueError: bad weights or `merge`, or nothing left to sample.
    """
    return plan_index(load_index(store), weights=weights or {}, merge=merge, seed=seed)


def plan_catalog(catalog: Catalog, *, weights: Mapping[str, float], merge: int, seed: int) -> Plan:
    """`build_plan` for a catalog at hand."""
    return plan_index(Index.of(catalog), weights=weights, merge=merge, seed=seed)


def plan_index(index: Index, *, weights: Mapping[str, float], merge: int, seed: int) -> Plan:
    """`build_plan` for an index at hand; takes no longer for a large one."""
    if merge < 1:
        raise ValueError(f"merge is {merge}; a row holds at least one dialogue")
    pools, share = _pools(index, weights)
    weight = np.zeros(256)
    if not weights:
        share = (1.0,)
        records = len(index.all_records())
        weight[:NOT_TRAINABLE] = 1.0 / max(1, records)
    else:
        records = len(pools)
        for task, part in zip(pools, share, strict=True):
            weight[index.tasks.index(task)] = part / len(index.pool(task))
    if not records:
        raise ValueError("no dialogue to sample: the dataset is empty or all weights are zero")
    shares = block_shares(share)
    return Plan(seed=seed, merge=merge, index=index, pools=pools, shares=shares, weight=weight)


def _pools(index: Index, weights: Mapping[str, float]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Weighted tasks that have records, and their weights."""
    pools, share = [], []
    for task in sorted(weights):
        if not 0.0 <= weights[task] < np.inf:
            raise ValueError(f"weight of task {task} is {weights[task]}; expected a number >= 0")
        records = len(index.pool(task))
        if weights[task] and not records:
            _LOG.warning("task %s has a sampling weight but no record; it is left out", task)
        elif weights[task]:
            pools.append(task)
            share.append(float(weights[task]))
    return tuple(pools), tuple(share)


def block_shares(share: Sequence[float]) -> tuple[int, ...]:
    """Rows of a block for each pool: rounded, but at least one."""
    total = sum(share)
    return tuple(max(1, round(_BLOCK * part / total)) for part in share)
