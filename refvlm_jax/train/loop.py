"""The training loop: resume, step, record, save, stop."""

import enum
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from refvlm_jax.ckpt.manager import CheckpointManager
from refvlm_jax.config.resolve import diff, to_dict
from refvlm_jax.config.schema import RunConfig
from refvlm_jax.mesh.build import batch_sharding, check_rows, make_mesh, make_rules
from refvlm_jax.train.goodput import Ledger, carried_on
from refvlm_jax.train.metrics import MetricWriter, last_record
from refvlm_jax.train.model_def import ModelDef, ModelFn, Params, define
from refvlm_jax.train.nonfinite import TrainingError
from refvlm_jax.train.optim import check_groups, check_trained, is_trainable, make_optimizer
from refvlm_jax.train.packing import Packing
from refvlm_jax.train.progress import ProgressView
from refvlm_jax.train.run import Hook, Run
from refvlm_jax.train.state import StatePlan, TrainState, build, initialize
from refvlm_jax.train.step import make_packed_step
from refvlm_jax.train.task import Task

__all__ = ["CHECKPOINTS", "FitResult", "Hook", "Status", "TrainingError", "fit", "plan_state"]

_LOG = logging.getLogger(__name__)
CHECKPOINTS = "checkpoints"
"""Name of the checkpoint folder inside a work folder."""
LoaderFn = Callable[[int], Iterable[Any]]
"""Step to start at -> host batches with this process's rows, one a step."""
StartFn = Callable[[StatePlan, Callable[[str], None]], Mapping[str, Any]]
"""What a run needs, and where to report -> first values by dotted name."""


class Status(enum.Enum):
    """How `fit` ended."""

    FINISHED = "finished"
    ALREADY_DONE = "already done"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class FitResult:
    """The end of a run."""

    status: Status
    step: int
    train_seconds: float
    """Wall time spent training, summed over all restarts."""
    metrics: dict[str, float]
    """The last numbers recorded by this call."""
    state: TrainState
    frozen: Params
    ledger: dict[str, float]
    """Seconds by kind (`train.goodput.Kind`), summed over all restarts."""

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.status is not Status.INTERRUPTED

    @property
    def exit_code(self) -> int:
        """0 when finished, 3 when stopped by a signal after saving."""
        return 0 if self.finished else 3


def fit(
    config: RunConfig,
    task: Task,
    model_fn: ModelFn,
    loader_fn: LoaderFn,
    workdir: str | Path,
    *,
    hooks: Sequence[Hook] = (),
    start: StartFn | None = None,
    quiet: bool = False,
) -> FitResult:
    """Trains to `train.steps`, resuming from the newest checkpoint in `workdir`.

    Args:
      loader_fn: opens the stream of host batches at a step; the step is the whole data position.
      hooks: run between steps at their own rhythm and once at the end.
      start: gives the weights to start from (see `initialize`); not called on resume.
      quiet: print nothing; warnings are still logged.

    Raises:
      ConfigError: the configuration does not fit the devices or the model.
      CheckpointError: the checkpoint in `workdir` does not fit the configuration.
      TrainingError: a loss is not finite, or the data end early.
    """
    ledger = Ledger()
    folder = Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    mesh, rules = make_mesh(config.mesh), make_rules(config.mesh)
    check_rows(config.data.batch_size, config.train.accumulate, mesh, rules)
    model = define(model_fn)
    check_trained(config.optim, list(model.axes))
    plan = plan_state(config, model)
    view = ProgressView(config.name, quiet=quiet or jax.process_index() != 0)
    manager = CheckpointManager(folder / CHECKPOINTS, config.ckpt)
    try:
        state, frozen, meta = _start(config, plan, manager, start, view)
        seconds, first = meta.get("train_seconds", 0.0), int(jax.device_get(state.step))
        ledger.carry(carried_on(meta.get("ledger"), first, last_record(folder), time.time()))
        if first >= config.train.steps:
            view.say(f"already done: {first} of {config.train.steps} steps, nothing to train")
            done = meta.get("ledger", {})
            return FitResult(Status.ALREADY_DONE, first, seconds, {}, state, frozen, done)
        packing = Packing(plan.state)
        run = Run(
            config=config,
            workdir=folder,
            step_fn=make_packed_step(plan, packing, task, config, mesh, rules),
            packing=packing,
            sharding=batch_sharding(mesh, rules),
            manager=manager,
            view=view,
            writer=_writer(config, folder, first),
            hooks=hooks,
            earlier_seconds=seconds,
            ledger=ledger,
            skipped=meta.get("skipped_updates", 0),
        )
        state, step, signal = run.train(state, frozen, first, loader_fn(first))
        status = Status.FINISHED if step == config.train.steps else Status.INTERRUPTED
        view.say(_closing_line(status, signal, step, run.seconds))
        view.say(ledger.summary())
        totals = {str(kind): spent for kind, spent in ledger.totals().items()}
        return FitResult(status, step, run.seconds, run.metrics, state, frozen, totals)
    finally:
        manager.close()


def _writer(config: RunConfig, folder: Path, first: int) -> MetricWriter | None:
    if jax.process_index() != 0:
        return None
    return MetricWriter(folder, first, config.train.tensorboard)


def plan_state(config: RunConfig, model: ModelDef, mesh: Mesh | None = None) -> StatePlan:
    """The abstract state of a run: optimiser, shardings and dtypes as configured.

    Args:
      mesh: devices to plan for; None takes those of this machine.
    """
    check_groups(config.optim, list(model.axes))
    return build(
        model,
        make_optimizer(config.optim, config.train.steps, model.axes),
        make_mesh(config.mesh) if mesh is None else mesh,
        make_rules(config.mesh),
        is_trainable(config.optim),
        param_dtype=config.train.param_dtype,
        frozen_dtype=config.train.frozen_dtype,
    )


def _start(
    config: RunConfig,
    plan: StatePlan,
    manager: CheckpointManager,
    start: StartFn | None,
    view: ProgressView,
) -> tuple[TrainState, Params, Mapping[str, Any]]:
    """State, frozen parameters and metadata of a checkpoint, or from scratch without metadata."""
    if manager.latest_step() is None:
        state, frozen = initialize(plan, config.seed, start(plan, view.say) if start else None)
        return state, frozen, {}
    restored = manager.restore(plan.state, plan.frozen)
    view.say(f"resumed at step {restored.step}")
    if changed := diff(restored.meta["config"], to_dict(config)):
        listed = ", ".join(f"{n}: {old} -> {new}" for n, (old, new) in changed.items())
        _LOG.warning("the run continues under a changed configuration: %s", listed)
    return restored.state, restored.frozen, restored.meta


def _closing_line(status: Status, signal: str | None, step: int, seconds: float) -> str:
    if status is Status.INTERRUPTED:
        return f"stopped by {signal} after step {step}, saved; run again to continue"
    return f"finished {step} steps in {seconds:.0f} s of training"
