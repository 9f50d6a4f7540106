"""A profile of a running job, on demand: `touch WORKDIR/profile`."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

_LOG = logging.getLogger(__name__)
TRIGGER = "profile"
"""Name of the file whose touching starts a profile."""
_POLL_SECONDS = 1.0


class ProfileOnDemand:
    """Traces a few steps after the trigger file was touched, as often as it is touched.

    The file is compared by its time and never removed, so every process of a job sees the same touch.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        clock: Callable[[], float] = time.monotonic,
        start: Callable[[str], Any] = jax.profiler.start_trace,
        stop: Callable[[], Any] = jax.profiler.stop_trace,
    ) -> None:
        """Watches `folder`; `steps` = 0 never traces."""
        self._folder, self._steps, self._clock = folder, steps, clock
        self._start, self._stop = start, stop
        self._seen = self._touched()
        self._looked = clock()
        self._until: int | None = None
        self._out = folder

    def after(self, step: int, result: Any) -> None:
        """Called when `step` was dispatched; `result` is one of its arrays."""
        if self._until is not None:
            if step >= self._until:
                jax.block_until_ready(result)
                self.close()
            return
        if not self._steps or self._clock() - self._looked < _POLL_SECONDS:
            return
        self._looked = self._clock()
        if (touched := self._touched()) == self._seen:
            return
        self._seen = touched
        self._begin(step)

    def close(self) -> None:
        """Ends a trace that is still running."""
        if self._until is not None:
            self._until = None
            self._stop()
            _LOG.warning("profile written to %s; open it with TensorBoard or xprof", self._out)

    def _begin(self, step: int) -> None:
        self._out = self._folder / "profiles" / f"step_{step + 1}"
        try:
            self._start(str(self._out))
        except Exception as error:  # another profiler is at work; training goes on
            _LOG.warning("no profile: %s", error)
            return
        self._until = step + self._steps

    def _touched(self) -> int:
        """Time of the trigger file, 0 where there is none or it cannot be read."""
        try:
            return os.stat(self._folder / TRIGGER).st_mtime_ns
        except OSError:
            return 0
