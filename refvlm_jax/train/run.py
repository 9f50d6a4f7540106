"""One call of the training loop, from its first step to its last or to a signal."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from refvlm_jax.ckpt.manager import CheckpointManager
from refvlm_jax.config.resolve import fingerprint, to_dict
from refvlm_jax.config.schema import RunConfig
from refvlm_jax.train.goodput import DeviceClock, Ledger
from refvlm_jax.train.metrics import MetricWriter
from refvlm_jax.train.model_def import Params
from refvlm_jax.train.nonfinite import NonFinitePolicy, TrainingError
from refvlm_jax.train.packing import Numbers, Packed, PackedRows, Packing, RowPacking
from refvlm_jax.train.profiling import ProfileOnDemand
from refvlm_jax.train.progress import ProgressView
from refvlm_jax.train.state import TrainState
from refvlm_jax.train.step import PackedStepFn
from refvlm_jax.train.stop import StopRequest
from refvlm_jax.train.utilisation import Utilisation
from refvlm_jax.train.watchdog import Watchdog

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hook:
    """Something that runs between steps, such as an evaluation; its numbers are recorded."""

    every: int
    """Steps between calls; 0 calls it after the last step only."""
    run: Callable[[int, TrainState, Params], Mapping[str, float]]
    """(step, state, frozen parameters) -> numbers by name. The state must not be kept."""

    def due(self, step: int, steps: int) -> bool:
        """Whether to call it after `step` of `steps`."""
        return step == steps or (self.every > 0 and step % self.every == 0)


@dataclass(frozen=True)
class _Pending:
    """A dispatched step whose numbers are still on the devices."""

    step: int
    numbers: Numbers
    sample_ids: np.ndarray | None


@dataclass(kw_only=True)
class Run:
    """The loop's fixed parts, and the little that changes beside the state."""

    config: RunConfig
    workdir: Path
    step_fn: PackedStepFn
    packing: Packing
    """How `step_fn` wants the state."""
    sharding: NamedSharding
    manager: CheckpointManager
    view: ProgressView
    writer: MetricWriter | None
    """None on all processes but the first."""
    hooks: Sequence[Hook]
    earlier_seconds: float
    """Training time of the restarts before this one."""
    ledger: Ledger
    skipped: int = 0
    """Updates left out by the restarts before this one."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last recorded numbers."""
    _pending: _Pending | None = None
    _blocked_ms: float | None = None
    _programs: int = 0
    _row_packings: dict[tuple[Any, ...], RowPacking] = field(default_factory=dict)
    """By structure, shapes and dtypes of a batch."""
    _began: float = 0.0
    _tally: Callable[[], Mapping[str, int]] = dict
    """What the loader of this process has read and lost so far."""
    _tallied: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        train = self.config.train
        devices = list(self.sharding.mesh.devices.flat)
        self._utilisation = Utilisation(devices[0], len(devices))
        self._policy = NonFinitePolicy(train, self.workdir, self.skipped)
        self._profile = ProfileOnDemand(self.workdir, train.profile_steps)
        self._watchdog = Watchdog(
            self.workdir / f"stacks.{jax.process_index()}.txt",
            train.hang_seconds,
            lambda: None if self.ledger.kind == "evaluate" else self.ledger.kind,
            end_process=train.hang_exit,
        )

    @property
    def seconds(self) -> float:
        """Wall time spent training, restarts included."""
        return self.earlier_seconds + time.perf_counter() - self._began

    def train(
        self, state: TrainState, frozen: Params, first: int, loader: Iterable[Any]
    ) -> tuple[TrainState, int, str | None]:
        """Steps on from `first`; returns the state, the step reached and the stopping signal."""
        self._began = time.perf_counter()
        self._devices = DeviceClock()
        self.ledger.enter("step")
        self.view.start(first, self.config.train.steps, self.config.data.batch_size)
        batches = iter(loader)
        self._tally = getattr(batches, "tally", dict)
        try:
            with StopRequest() as stop, self._watchdog:
                packed, step = self._loop(self.packing.pack(state), frozen, first, batches, stop)
                with self.ledger.spend("checkpoint"):
                    self.manager.wait()
            self._record_end(step)
            return self.packing.unpack(packed), step, stop.signal_name
        finally:
            self.view.close()
            self._profile.close()
            self._devices.close()
            if self.writer is not None:
                self.writer.close()
            if callable(close := getattr(batches, "close", None)):
                close()

    def _loop(
        self,
        state: Packed,
        frozen: Params,
        step: int,
        batches: Iterator[Any],
        stop: StopRequest,
    ) -> tuple[Packed, int]:
        total, every = self.config.train.steps, self.config.ckpt.every_steps
        batch, ids = self._next(batches, step)
        while True:
            state, numbers = self._dispatch(step, state, frozen, batch)
            step += 1
            if step < total:
                batch, next_ids = self._next(batches, step)
            # The devices work on this step while the numbers of the one before are fetched.
            self._record_pending()
            self._pending = _Pending(step, numbers, ids)
            ids = next_ids if step < total else None
            self._watchdog.beat(step)
            self._profile.after(step, numbers.values)
            self._call_hooks(step, state, frozen)
            stopping = stop.asked(step) or step == total
            if stopping or step % every == 0:
                self._save(step, state, frozen)
            if stopping:
                return state, step

    def _dispatch(
        self, step: int, state: Packed, frozen: Params, batch: PackedRows
    ) -> tuple[Packed, Numbers]:
        """Hands one step to the devices; compiling it, and any shape that changed, is said aloud."""
        began = time.perf_counter()
        if news := self._utilisation.add(self.step_fn, state, frozen, batch):
            self.view.say(news)
        # Anything that slips to or from the host unasked would stall every step.
        with jax.transfer_guard("disallow"):
            state, numbers = self.step_fn(state, frozen, batch)
        self._devices.expect(numbers.values)
        if (programs := _programs(self.step_fn)) != self._programs:
            self.ledger.move(time.perf_counter() - began, "step", "compile")
            if self._programs > len(self.config.data.buckets):  # one program a length
                _LOG.warning(
                    "step %d was compiled anew: its batch has other shapes or dtypes than those "
                    "before; give every batch the same static sizes",
                    step + 1,
                )
            self._programs = programs
        return state, numbers

    def _next(self, batches: Iterator[Any], step: int) -> tuple[PackedRows, np.ndarray | None]:
        """The batch of the update after `step` on the devices, and its sample ids on the host."""
        began = time.perf_counter()
        with self.ledger.spend("input"):
            try:
                host = next(batches)
            except StopIteration:
                raise TrainingError(
                    f"the data ended after step {step} of {self.config.train.steps}; "
                    "the loader must repeat its samples"
                ) from None
        ended, idle = time.perf_counter(), self._devices.idle_since()
        # While the devices had work, nothing was lost by waiting.
        hidden = (ended if idle is None else max(idle, began)) - began
        self.ledger.move(min(hidden, ended - began), "input", "step")
        return self._put(host), getattr(host, "sample_id", None)

    def _put(self, batch: Any) -> PackedRows:
        """A host batch on the devices, packed."""
        rows = self.config.data.batch_size
        leaves, tree = jax.tree.flatten(batch)
        form = (tree, *((array.shape, array.dtype) for array in leaves))
        packing = self._row_packings.get(form)
        if packing is None:
            _check_rows(batch, rows)
            packing = self._row_packings[form] = RowPacking(batch)
        return put_batch(packing.pack(batch), self.sharding, rows)

    def _record_pending(self) -> None:
        """Fetches and records the numbers of the last dispatched step."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        fetched = pending.numbers.fetch()
        values = self._policy.judge(pending.step, fetched, pending.sample_ids)
        rates = self.view.advance(pending.step)
        every, total = self.config.train.log_every, self.config.train.steps
        if pending.step % every and pending.step != total:
            return
        rates |= self._utilisation.record(rates.get("steps_per_second", 0.0))
        self._record(pending.step, values | rates | self._times() | self._data())

    def _record_end(self, step: int) -> None:
        """Closes the books of this process, so that a later one knows what its end cost."""
        if self.writer is not None:
            self.writer.write(step, self._times())

    def _times(self) -> dict[str, float]:
        values = {"train_seconds": self.seconds, **self.ledger.record()}
        if self._blocked_ms is not None:
            values["checkpoint/blocked_ms"] = self._blocked_ms
            self._blocked_ms = None
        return values

    def _data(self) -> dict[str, float]:
        """What this process has read and lost since the last record; a batch ahead of the steps."""
        before, self._tallied = self._tallied, dict(self._tally())
        new = {name: number - before.get(name, 0) for name, number in self._tallied.items()}
        return {f"data/{name}": float(number) for name, number in sorted(new.items()) if number}

    def _record(self, step: int, values: dict[str, float]) -> None:
        self.metrics |= values
        self.view.report(step, values)
        if self.writer is not None:
            self.writer.write(step, values)

    def _call_hooks(self, step: int, state: Packed, frozen: Params) -> None:
        for hook in self.hooks:
            if hook.due(step, self.config.train.steps):
                self._record_pending()
                with self.ledger.spend("evaluate"):
                    values = dict(hook.run(step, self.packing.unpack(state), frozen))
                if values:
                    self._record(step, values)

    def _save(self, step: int, state: Packed, frozen: Params) -> None:
        # Checks this step's numbers first: a state that went bad must never be saved.
        self._record_pending()
        meta = {
            "config": to_dict(self.config),
            "config_hash": fingerprint(self.config),
            "train_seconds": self.seconds,
            "ledger": self.ledger.totals(),
            "skipped_updates": self._policy.skipped,
        }
        with self.ledger.spend("checkpoint"):
            whole = self.packing.unpack(state)
            self._blocked_ms = 1000 * self.manager.save(step, whole, frozen, meta)


def put_batch(batch: Any, sharding: NamedSharding, rows: int) -> Any:
    """Host arrays with this process's rows as global arrays of `rows` rows."""
    _check_rows(batch, rows)
    if jax.process_count() == 1:
        # One call for all arrays: a fraction of the host time of placing them one by one.
        return jax.device_put(batch, sharding)

    def put(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, x, (rows, *x.shape[1:]))

    return jax.tree.map(put, batch)


def _check_rows(batch: Any, rows: int) -> None:
    """Raises ValueError where one process, which holds all `rows`, has an array with fewer or more."""
    if jax.process_count() == 1:
        for array in jax.tree.leaves(batch):
            if len(array) != rows:
                raise ValueError(
                    f"a batch has {len(array)} rows, expected data.batch_size = {rows}"
                )


def _programs(step_fn: PackedStepFn) -> int:
    """How many programs a compiled function holds, 1 where it does not say."""
    count = getattr(step_fn, "_cache_size", None)
    return int(count()) if callable(count) else 1
