"""One call of the training loop, from its first step to its last or to a signal."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from refvlm_jax.ckpt.manager import CheckpointManager
from refvlm_jax.config.resolve import fingerprint, to_dict
from refvlm_jax.config.schema import RunConfig
from refvlm_jax.train.metrics import MetricWriter
from refvlm_jax.train.model_def import Params
from refvlm_jax.train.progress import ProgressView
from refvlm_jax.train.state import TrainState
from refvlm_jax.train.step import Metrics, StepFn
from refvlm_jax.train.stop import StopRequest


class TrainingError(ValueError):
    """Training cannot go on; the message names the step, the samples and the remedy."""


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
    metrics: Metrics
    sample_ids: np.ndarray | None


@dataclass(kw_only=True)
class Run:
    """The loop's fixed parts, and the little that changes beside the state."""

    config: RunConfig
    step_fn: StepFn
    sharding: NamedSharding
    manager: CheckpointManager
    view: ProgressView
    writer: MetricWriter | None
    """None on all processes but the first."""
    hooks: Sequence[Hook]
    earlier_seconds: float
    """Training time of the restarts before this one."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last recorded numbers."""
    _pending: _Pending | None = None
    _save_seconds: float | None = None
    _began: float = 0.0

    @property
    def seconds(self) -> float:
        """Wall time spent training, restarts included."""
        return self.earlier_seconds + time.perf_counter() - self._began

    def train(
        self, state: TrainState, frozen: Params, first: int, loader: Iterable[Any]
    ) -> tuple[TrainState, int, str | None]:
        """Steps on from `first`; returns the state, the step reached and the stopping signal."""
        self._began = time.perf_counter()
        self.view.start(first, self.config.train.steps, self.config.data.batch_size)
        batches = iter(loader)
        try:
            with StopRequest() as stop:
                state, step = self._loop(state, frozen, first, batches, stop)
            self.manager.wait()
            return state, step, stop.signal_name
        finally:
            self.view.close()
            if self.writer is not None:
                self.writer.close()
            if callable(close := getattr(batches, "close", None)):
                close()

    def _loop(
        self,
        state: TrainState,
        frozen: Params,
        step: int,
        batches: Iterator[Any],
        stop: StopRequest,
    ) -> tuple[TrainState, int]:
        total, every = self.config.train.steps, self.config.ckpt.every_steps
        batch, ids = self._next(batches, step)
        while True:
            # Anything that slips to or from the host unasked would stall every step.
            with jax.transfer_guard("disallow"):
                state, metrics = self.step_fn(state, frozen, batch)
            step += 1
            if step < total:
                batch, next_ids = self._next(batches, step)
            # The devices work on this step while the numbers of the one before are fetched.
            self._record_pending()
            self._pending = _Pending(step, metrics, ids)
            ids = next_ids if step < total else None
            self._call_hooks(step, state, frozen)
            stopping = stop.asked(step) or step == total
            if stopping or step % every == 0:
                self._save(step, state, frozen)
            if stopping:
                return state, step

    def _next(self, batches: Iterator[Any], step: int) -> tuple[Any, np.ndarray | None]:
        """The batch of the update after `step` on the devices, and its sample ids on the host."""
        try:
            host = next(batches)
        except StopIteration:
            raise TrainingError(
                f"the data ended after step {step} of {self.config.train.steps}; "
                "the loader must repeat its samples"
            ) from None
        rows = self.config.data.batch_size
        return put_batch(host, self.sharding, rows), getattr(host, "sample_id", None)

    def _record_pending(self) -> None:
        """Fetches and records the numbers of the last dispatched step."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        values = {k: float(v) for k, v in jax.device_get(pending.metrics).items()}
        _check_finite(pending, values)
        rates = self.view.advance(pending.step)
        every, total = self.config.train.log_every, self.config.train.steps
        if pending.step % every and pending.step != total:
            return
        values |= {**rates, "train_seconds": self.seconds}
        if self._save_seconds is not None:
            values["checkpoint_blocked_seconds"] = self._save_seconds
            self._save_seconds = None
        self._record(pending.step, values)

    def _record(self, step: int, values: dict[str, float]) -> None:
        self.metrics |= values
        self.view.report(step, values)
        if self.writer is not None:
            self.writer.write(step, values)

    def _call_hooks(self, step: int, state: TrainState, frozen: Params) -> None:
        for hook in self.hooks:
            if hook.due(step, self.config.train.steps):
                self._record_pending()
                if values := dict(hook.run(step, state, frozen)):
                    self._record(step, values)

    def _save(self, step: int, state: TrainState, frozen: Params) -> None:
        # Checks this step's numbers first: a state that went bad must never be saved.
        self._record_pending()
        meta = {
            "config": to_dict(self.config),
            "config_hash": fingerprint(self.config),
            "train_seconds": self.seconds,
        }
        self._save_seconds = self.manager.save(step, state, frozen, meta)


def put_batch(batch: Any, sharding: NamedSharding, rows: int) -> Any:
    """Host arrays with this process's rows as global arrays of `rows` rows."""

    def put(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, x, (rows, *x.shape[1:]))

    return jax.tree.map(put, batch)


def _check_finite(pending: _Pending, values: Mapping[str, float]) -> None:
    bad = [f"{k} = {v}" for k, v in values.items() if not math.isfinite(v)]
    if bad:
        ids = "unknown" if pending.sample_ids is None else np.asarray(pending.sample_ids).tolist()
        raise TrainingError(
            f"step {pending.step}: {', '.join(bad)}; samples {ids} of this process. Nothing was "
            "saved since; lower optim.lr or look at these samples, then run again to resume"
        )
