"""The global sample stream: which dialogues make up row number i, as a pure function of (seed, i).

No state, no lists of the whole stream: any host can compute any row, whatever the number of hosts.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data_pipelines.catalog import Catalog, load_catalog
from data_pipelines.permute import mix, permuted
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
    pools: tuple[np.ndarray, ...]
    """Record numbers of each pool."""
    shares: tuple[int, ...]
    """Anchors of each pool in a block of rows."""
    weight: np.ndarray
    """float64[n] chance of a record to be taken along, relative to others of its picture."""
    members: np.ndarray
    """[n] record numbers sorted by picture."""
    first: np.ndarray
    """[pictures + 1] where each picture starts in `members`."""
    picture: np.ndarray
    """[n] picture number of every record."""

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
        epoch, place = divmod(position, len(self.pools[pool]))
        key = mix(self.seed, _SHUFFLE, pool, epoch)
        return int(self.pools[pool][permuted(place, len(self.pools[pool]), key)])

    def _companions(self, anchor: int, rng: np.random.Generator) -> list[int]:
        picture = int(self.picture[anchor])
        members = self.members[self.first[picture] : self.first[picture + 1]]
        weight = np.where(members == anchor, 0.0, self.weight[members])
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
    store: DialogStore,
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
    return plan_catalog(load_catalog(store), weights=weights or {}, merge=merge, seed=seed)


def plan_catalog(catalog: Catalog, *, weights: Mapping[str, float], merge: int, seed: int) -> Plan:
    """`build_plan` for a catalog at hand."""
    if merge < 1:
        raise ValueError(f"merge is {merge}; a row holds at least one dialogue")
    pools, share = _pools(catalog, weights)
    if not pools:
        raise ValueError("no dialogue to sample: the dataset is empty or all weights are zero")
    weight = np.zeros(len(catalog.task))
    for pool, part in zip(pools, share, strict=True):
        weight[pool] = part / len(pool)
    _, picture, sizes = np.unique(catalog.picture, return_inverse=True, return_counts=True)
    return Plan(
        seed=seed,
        merge=merge,
        pools=pools,
        shares=_block_shares(share),
        weight=weight,
        members=_compact(np.argsort(picture, kind="stable")),
        first=_compact(np.concatenate([[0], np.cumsum(sizes)])),
        picture=_compact(picture),
    )


def _pools(
    catalog: Catalog, weights: Mapping[str, float]
) -> tuple[tuple[np.ndarray, ...], tuple[float, ...]]:
    if not weights:
        everything = _compact(np.flatnonzero(catalog.trainable))
        return ((everything,), (1.0,)) if len(everything) else ((), ())
    pools, share = [], []
    for task in sorted(weights):
        if not 0.0 <= weights[task] < np.inf:
            raise ValueError(f"weight of task {task} is {weights[task]}; expected a number >= 0")
        code = catalog.tasks.index(task) if task in catalog.tasks else -1
        records = np.flatnonzero((catalog.task == code) & catalog.trainable)
        if weights[task] and not len(records):
            _LOG.warning("task %s has a sampling weight but no record; it is left out", task)
        elif weights[task]:
            pools.append(_compact(records))
            share.append(float(weights[task]))
    return tuple(pools), tuple(share)


def _block_shares(share: tuple[float, ...]) -> tuple[int, ...]:
    """Rows of a block for each pool: rounded, but at least one."""
    total = sum(share)
    return tuple(max(1, round(_BLOCK * part / total)) for part in share)


def _compact(numbers: np.ndarray) -> np.ndarray:
    """Unsigned 32-bit where they fit, which halves the memory of large plans."""
    fits = not len(numbers) or numbers.max() < 2**32
    return numbers.astype(np.uint32 if fits else np.int64)
