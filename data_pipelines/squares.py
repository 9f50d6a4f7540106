"""Pictures as padded squares, decoded once and kept while memory allows."""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_pipelines.images import Decoding, load_square
from data_pipelines.records import MediaRef


class Squares(Protocol):
    """Gives pictures as uint8[size, size, 3] squares."""

    @property
    def root(self) -> Path:
        """Folder of the pictures."""

    def __call__(self, media: MediaRef) -> np.ndarray:
        """The square of a picture; raises `images.ImageError`."""


class SquareReader:
    """Reads pictures as uint8[size, size, 3] squares; the least recently used are forgotten first.

    Safe to call from several threads. Every process has its own memory.

    Args:
      root: folder of the pictures.
      size: side of the square in pixels.
      cache_bytes: memory for decoded squares; 0 keeps none.
      decoding: how they are decoded.
    """

    def __init__(
        self, root: Path, size: int, cache_bytes: int = 0, decoding: Decoding | None = None
    ) -> None:
        self.root, self.size = Path(root), size
        self.decoding = decoding or Decoding()
        self.capacity = cache_bytes // (size * size * 3)
        self._forget()

    def _forget(self) -> None:
        self._kept: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_kept", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __call__(self, media: MediaRef) -> np.ndarray:
        """The square of a picture, read-only; raises `images.ImageError` as `load_image` does."""
        key = (media.path, media.sha256)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        square = load_square(media, self.root, self.size, self.decoding)
        square.setflags(write=False)
        if self.capacity:
            self._keep(key, square)
        return square

    def _keep(self, key: tuple[str, str], square: np.ndarray) -> None:
        with self._lock:
            self._kept[key] = square
            while len(self._kept) > self.capacity:
                self._kept.popitem(last=False)
