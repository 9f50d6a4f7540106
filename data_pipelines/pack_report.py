"""How well a packed stream fills its rows."""

import time
from dataclasses import dataclass

from data_pipelines.pack import PackedPlan


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Counts over the first windows of a stream."""

    items: int
    rows: int
    tokens: int
    """Positions that the items take, at their longest question."""
    seq_len: int
    seconds: float
    """Time of drawing and packing."""

    @property
    def alone(self) -> float:
        """Used part of the positions with an item a row."""
        return self.tokens / (self.items * self.seq_len)

    @property
    def packed(self) -> float:
        """Used part of the positions when packed."""
        return self.tokens / (self.rows * self.seq_len)

    def __str__(self) -> str:
        return (
            f"{self.items} items in {self.rows} rows of {self.seq_len}: token efficiency "
            f"{self.alone:.3f} alone, {self.packed:.3f} packed; "
            f"{self.items / self.seconds:.0f} items/s planned"
        )


def report_packing(plan: PackedPlan, windows: int) -> Packing:
    """Packs the first windows of a stream."""
    items = rows = tokens = 0
    start = time.perf_counter()
    for window in range(windows):
        made, sizes = plan.pack_window(window)
        items, rows, tokens = items + len(sizes), rows + len(made), tokens + int(sizes[:, 0].sum())
    seconds = time.perf_counter() - start
    return Packing(items=items, rows=rows, tokens=tokens, seq_len=plan.limits[0], seconds=seconds)
