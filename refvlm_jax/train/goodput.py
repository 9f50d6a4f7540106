"""Where the wall time of a run goes: every second belongs to exactly one kind."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

Kind = Literal["start", "compile", "step", "input", "checkpoint", "evaluate", "lost", "down"]
"""`start`: making or restoring the state. `compile`: tracing and compiling. `step`: useful work.
`input`: devices stood idle for data. `checkpoint`: training was held up by saving. `evaluate`: hooks.
`lost`: work that a crash threw away. `down`: between the last record of one process and the next."""
KINDS: tuple[Kind, ...] = get_args(Kind)
PREFIX = "ledger/"


class Ledger:
    """Seconds by kind, over all restarts; one kind is current at any time."""

    def __init__(
        self,
        earlier: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Starts in kind `start`, on top of `earlier` totals."""
        self._clock = clock
        self._seconds: dict[Kind, float] = {k: (earlier or {}).get(k, 0.0) for k in KINDS}
        self._kind: Kind = "start"
        self._since = clock()

    @property
    def kind(self) -> Kind:
        """What the run is doing now."""
        return self._kind

    def carry(self, earlier: Mapping[str, float]) -> None:
        """Adds the totals of restarts before this one."""
        for kind in KINDS:
            self._seconds[kind] += earlier.get(kind, 0.0)

    def enter(self, kind: Kind) -> None:
        """Ends the current kind and begins another."""
        now = self._clock()
        self._seconds[self._kind] += now - self._since
        self._kind, self._since = kind, now

    @contextlib.contextmanager
    def spend(self, kind: Kind) -> Iterator[None]:
        """The time inside the block belongs to `kind`."""
        before = self._kind
        self.enter(kind)
        try:
            yield
        finally:
            self.enter(before)

    def move(self, seconds: float, source: Kind, target: Kind) -> None:
        """Books time again that turned out to belong elsewhere."""
        self.enter(self._kind)
        self._seconds[source] -= seconds
        self._seconds[target] += seconds

    def totals(self) -> dict[Kind, float]:
        """Seconds of every kind up to now."""
        self.enter(self._kind)
        return dict(self._seconds)

    def record(self) -> dict[str, float]:
        """Totals under their metric names, and `goodput`: the share of useful work."""
        totals = self.totals()
        whole = sum(totals.values())
        named = {f"{PREFIX}{kind}": seconds for kind, seconds in totals.items()}
        return named | {"goodput": totals["step"] / whole if whole > 0 else 0.0}

    def summary(self) -> str:
        """One line: the whole time and the share of every kind that took any."""
        totals = self.totals()
        whole = max(sum(totals.values()), 1e-9)
        shares = [f"{k} {100 * s / whole:.1f}%" for k, s in totals.items() if s / whole > 5e-4]
        return f"{whole:.0f} s in all: {', '.join(shares)}"


def carried_on(
    saved: Mapping[str, float] | None, step: int, last: Mapping[str, float] | None, now: float
) -> dict[str, float]:
    """Totals that a restarted run begins with.

    Args:
      saved: totals stored with the checkpoint of `step`; None without a checkpoint.
      last: the last metric record of the process before, if any.
      now: Unix time.

    Time spent after the checkpoint is lost, unless nothing was trained after it. What passed since
    the last record, in which the process died, waited and came back, is downtime.
    """
    totals = dict(saved or {})
    if last is None or "time" not in last:
        return totals
    ended = {str(k): last[PREFIX + k] for k in KINDS if PREFIX + k in last}
    if last["step"] == step and saved is not None and ended:
        totals = ended
    else:
        redone = sum(ended.values()) - sum(totals.values())
        totals["lost"] = totals.get("lost", 0.0) + max(redone, 0.0)
    totals["down"] = totals.get("down", 0.0) + max(now - last["time"], 0.0)
    return totals


class DeviceClock:
    """Notes when the devices finish a step, without holding up the loop.

    The host fetches data while the devices work; only what it fetches longer than they work is
    time lost to input, and that needs the moment the devices became idle.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._expected = self._finished = 0
        self._idle_since: float | None = clock()
        self._thread = threading.Thread(target=self._wait, name="device clock", daemon=True)
        self._thread.start()

    def expect(self, array: Any) -> None:
        """A step was dispatched; `array` is one of its results."""
        self._expected += 1
        self._queue.put(array)

    def idle_since(self) -> float | None:
        """When the last dispatched step finished; None while it runs."""
        return self._idle_since if self._finished == self._expected else None

    def close(self) -> None:
        """Ends the thread once it has seen all steps."""
        self._queue.put(None)

    def _wait(self) -> None:
        while (array := self._queue.get()) is not None:
            # A step that failed reports its error where its numbers are fetched.
            with contextlib.suppress(Exception):
                array.block_until_ready()
            self._idle_since = self._clock()
            self._finished += 1
