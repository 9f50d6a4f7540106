"""Polite stopping: a signal asks, the loop finishes its step and saves."""

import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Catches SIGTERM and SIGINT inside a `with` block.

    A second Ctrl-C interrupts at once. In a multi-process run SIGTERM belongs to the JAX
    coordination service, which makes every process stop after the same step.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        # Python delivers signals to the main thread only; elsewhere the caller handles them.
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def asked(self, step: int) -> bool:
        """Whether to stop after `step`; the same answer on every process."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal_name = "SIGTERM"
        return self.signal_name is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)
