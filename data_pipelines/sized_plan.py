"""What plans that know the sizes of records share."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_pipelines.pack_sizes import item_sizes
from data_pipelines.plan import Plan


class SizedPlan:
    """A stream of items with their sizes; travels to worker processes without what is only kept.

    Args:
      plan: the stream of items.
      sizes: see `pack_sizes.load_sizes`.
      limits: room of a row by `pack_sizes.KINDS`.
    """

    _kept: ClassVar[tuple[str, ...]] = ()
    """Attributes that `_open` makes anew in every process."""

    def __init__(self, plan: Plan, sizes: np.ndarray, limits: tuple[int, ...]) -> None:
        self.plan, self.limits, self._sizes = plan, limits, sizes

    def _open(self) -> None:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name not in self._kept}
        # A mapped array would travel whole; the other process maps it itself.
        if isinstance(self._sizes, np.memmap):
            state["_sizes"] = Path(str(self._sizes.filename))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self._sizes, Path):
            self._sizes = np.load(self._sizes, mmap_mode="r", allow_pickle=False)
        self._open()

    def decodes(self, row: int) -> bool:
        """References of every row are learnt."""
        return True

    def rows(self, item: int) -> list[int]:
        """Records of an item, as `Plan.rows`."""
        return self.plan.rows(item)

    def room(self, item: int) -> list[int]:
        """Room that an item was given, by `pack_sizes.KINDS`."""
        return item_sizes(self._sizes, [self.plan.rows(item)], self.limits)[0].tolist()
