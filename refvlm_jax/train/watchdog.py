"""Notices a run that hangs: says what it was doing and writes every thread's stack."""

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TextIO

_LOG = logging.getLogger(__name__)
HANG_EXIT = 4
"""Exit status of a process that ended itself because it hung."""


class Watchdog:
    """Watches for progress inside a `with` block, from a thread.

    A hang that holds Python's lock stops every thread, this one too; a timer of `faulthandler`, which
    needs no lock, then writes the stacks.
    """

    def __init__(
        self,
        file: Path,
        seconds: float,
        activity: Callable[[], str | None],
        *,
        end_process: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A watchdog that barks after `seconds` without `beat`.

        Args:
          file: stacks are appended here.
          seconds: 0 turns it off.
          activity: what the run is doing; None while it may take as long as it likes.
          end_process: leave with `HANG_EXIT` afterwards, so that a launcher can restart the job.
        """
        self._path, self._seconds, self._activity = file, seconds, activity
        self._end_process, self._clock = end_process, clock
        self._last = clock()
        self._step = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._file: TextIO | None = None

    def beat(self, step: int) -> None:
        """The run made progress: it reached `step`."""
        self._step, self._last = step, self._clock()

    def __enter__(self) -> "Watchdog":
        if self._seconds > 0:
            self.beat(self._step)
            self._file = self._path.open("a", encoding="utf-8")
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is None or self._file is None:
            return
        self._stop.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        if not self._path.stat().st_size:
            self._path.unlink()

    def check(self) -> bool:
        """Barks if the time is up; returns whether it did."""
        if (activity := self._activity()) is None:
            self._last = self._clock()
            return False
        if self._clock() - self._last < self._seconds or self._file is None:
            return False
        line = (
            f"no progress for {self._seconds:g} s after step {self._step}, in {activity}: stacks of "
            f"all threads are in {self._path}; another process may be the one that hangs, compare "
            "their stacks"
        )
        _LOG.error(line)
        self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        self._file.flush()
        faulthandler.dump_traceback(self._file, all_threads=True)
        self._last = self._clock()
        if self._end_process:
            os._exit(HANG_EXIT)
        return True

    def _watch(self) -> None:
        pause = self._seconds / 4
        while not self._stop.wait(pause):
            # Armed anew at every look, so it only goes off when this thread cannot run.
            faulthandler.dump_traceback_later(
                2 * self._seconds, file=self._file or 2, exit=self._end_process
            )
            self.check()
