"""What plans that know the sizes of records share: they arrange a stream window by window."""

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from data_pipelines.pack_sizes import item_sizes
from data_pipelines.plan import Plan

Window = TypeVar("Window")
_REMEMBERED = 8  # arranged windows in memory


class SizedPlan(ABC, Generic[Window]):
    """A stream of items with their sizes. Safe to use from several threads, and to send to processes.

    Args:
      plan: the stream of items.
      sizes: see `pack_sizes.load_sizes`.
      limits: room of a row by `pack_sizes.KINDS`.
    """

    _local: ClassVar[tuple[str, ...]] = ("_lock", "_windows")
    """Attributes that `_open` makes anew in every process."""

    def __init__(self, plan: Plan, sizes: np.ndarray, limits: tuple[int, ...]) -> None:
        self.plan, self.limits, self._sizes = plan, limits, sizes

    def _open(self) -> None:
        self._lock = threading.RLock()
        self._windows: OrderedDict[int, Window] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name not in self._local}
        # A mapped array would travel whole; the other process maps it itself.
        if isinstance(self._sizes, np.memmap):
            state["_sizes"] = Path(str(self._sizes.filename))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self._sizes, Path):
            self._sizes = np.load(self._sizes, mmap_mode="r", allow_pickle=False)
        self._open()

    @abstractmethod
    def _arrange(self, window: int) -> Window:
        """How the items of a window are arranged, a function of its number alone."""

    def _arranged(self, window: int) -> Window:
        with self._lock:
            if window not in self._windows:
                self._windows[window] = self._arrange(window)
                while len(self._windows) > _REMEMBERED:
                    self._windows.popitem(last=False)
            self._windows.move_to_end(window)
            return self._windows[window]

    def decodes(self, row: int) -> bool:
        """References of every row are learnt."""
        return True

    def rows(self, item: int) -> list[int]:
        """Records of an item, as `Plan.rows`."""
        return self.plan.rows(item)

    def room(self, item: int) -> list[int]:
        """Room that an item was given, by `pack_sizes.KINDS`."""
        return item_sizes(self._sizes, [self.plan.rows(item)], self.limits)[0].tolist()
