"""One compiled optimiser step over plain pytrees."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, UInt32

from refvlm_jax.config.schema import RunConfig, TrainConfig
from refvlm_jax.mesh.rules import ShardingRules, constrain, use_sharding
from refvlm_jax.train.model_def import Params, is_constant
from refvlm_jax.train.optim import make_schedule
from refvlm_jax.train.packing import Numbers, Packed, PackedRows, Packing
from refvlm_jax.train.state import StatePlan, TrainState, shardings_of
from refvlm_jax.train.task import Sums, Task, loss_scales

Metrics = dict[str, Float[Array, ""]]
StepFn = Callable[[TrainState, Params, Any], tuple[TrainState, Metrics]]
PackedStepFn = Callable[[Packed, Params, PackedRows], tuple[Packed, Numbers]]


def cast_params(params: Params, config: TrainConfig) -> Params:
    """Floating parameters in the compute dtype; the one place where precision is decided."""
    return {n: v.astype(compute_dtype(n, v, config)) for n, v in params.items()}


def compute_dtype(name: str, value: Array | np.ndarray, config: TrainConfig) -> jnp.dtype:
    """The dtype that a parameter is used in."""
    kept = is_constant(name) or any(re.search(p, name) for p in config.keep_float32)
    if kept or not jnp.issubdtype(value.dtype, jnp.floating):
        return value.dtype
    return jnp.dtype(config.compute_dtype)


def dropout_key(rng: UInt32[Array, "2"], step: Int[Array, ""]) -> Array:
    """The key of a step: a function of run and step alone, so that a resumed run repeats it."""
    return jax.random.fold_in(jax.random.wrap_key_data(rng), step)


def make_train_step(
    plan: StatePlan, task: Task, config: RunConfig, mesh: Mesh, rules: ShardingRules
) -> StepFn:
    """Compiles lazily `step(state, frozen, batch) -> (state, metrics)`; `state` is donated.

    Metrics are float32 device scalars: `loss`, `loss/<term>` (normalised, unweighted),
    `count/<term>`, `grad_norm` (before clipping) and `lr`. Under `train.nonfinite = "skip"` a step
    whose loss or gradient is not finite advances the step number and changes nothing else.
    """
    step = _step_function(plan, task, config, mesh, rules)
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings_of(plan.state), whole))


def make_packed_step(
    plan: StatePlan,
    packing: Packing,
    task: Task,
    config: RunConfig,
    mesh: Mesh,
    rules: ShardingRules,
) -> PackedStepFn:
    """The step of `make_train_step` over few arrays: what the training loop dispatches.

    Args:
      packing: of `plan.state`.
    """
    step = _step_function(plan, task, config, mesh, rules)

    def packed_step(state: Packed, frozen: Params, rows: PackedRows) -> tuple[Packed, Numbers]:
        after, metrics = step(packing.unpack(state), frozen, rows.packing.unpack(rows))
        return packing.pack(after), Numbers.of(metrics)

    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(packed_step, donate_argnums=0, out_shardings=(packing.shardings, whole))


def _step_function(
    plan: StatePlan, task: Task, config: RunConfig, mesh: Mesh, rules: ShardingRules
) -> StepFn:
    schedule = make_schedule(config.optim, config.train.steps)

    def step(state: TrainState, frozen: Params, batch: Any) -> tuple[TrainState, Metrics]:
        with use_sharding(mesh, rules):
            counts = task.loss_counts(batch)
            key = dropout_key(state.rng, state.step)
            sums, grads = _gradients(plan, task, config, state.params, frozen, batch, counts, key)
            updates, opt_state = plan.tx.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        metrics = _metrics(sums, counts, _scales(task, config, counts))
        metrics |= {"grad_norm": optax.global_norm(grads), "lr": schedule(state.step)}
        if config.train.nonfinite == "skip":
            finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
            new, old = (params, opt_state), (state.params, state.opt_state)
            params, opt_state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        return TrainState(state.step + 1, params, opt_state, state.rng), metrics

    return step


def _gradients(
    plan: StatePlan,
    task: Task,
    config: RunConfig,
    params: Params,
    frozen: Params,
    batch: Any,
    counts: Sums,
    key: Array,
) -> tuple[Sums, Params]:
    """Loss sums and float32 gradients of the whole batch, micro-batch by micro-batch."""
    scales = _scales(task, config, counts)
    fixed = cast_params(frozen, config.train)

    def loss(trained: Params, rows: Any, micro_key: Array) -> tuple[Array, Sums]:
        model = plan.model.merge(cast_params(trained, config.train), fixed)
        sums = {k: s.astype(jnp.float32) for k, s in task.loss_sums(model, rows, micro_key).items()}
        if sums.keys() != scales.keys():
            raise ValueError(f"loss sums {sorted(sums)} and counts {sorted(scales)} differ")
        return sum(scales[k] * s for k, s in sums.items()), sums  # type: ignore[return-value]

    def micro(rows: Any, index: Any) -> tuple[Sums, Params]:
        grads, sums = jax.grad(loss, has_aux=True)(params, rows, jax.random.fold_in(key, index))
        return sums, jax.tree.map(lambda g: g.astype(jnp.float32), grads)

    parts = config.train.accumulate
    if parts == 1:
        return micro(batch, 0)

    def add(
        total: tuple[Sums, Params], part: tuple[Any, Array]
    ) -> tuple[tuple[Sums, Params], None]:
        return jax.tree.map(jnp.add, total, micro(*part)), None

    layout = shardings_of(plan.state.params)
    zeros = {n: jnp.zeros(p.shape, jnp.float32, device=layout[n]) for n, p in params.items()}
    start = ({k: jnp.zeros((), jnp.float32) for k in scales}, zeros)
    total, _ = jax.lax.scan(add, start, (split_rows(batch, parts), jnp.arange(parts)))
    return total


def split_rows(batch: Any, parts: int) -> Any:
    """Batch arrays [B, ...] as [parts, B / parts, ...]; micro-batch i holds rows i, i + parts, ...

    Strided rather than contiguous, so that each device keeps its own rows in every micro-batch.
    """

    def split(x: Array) -> Array:
        rows = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return constrain(rows, None, "batch", *(None,) * (x.ndim - 1))

    return jax.tree.map(split, batch)


def _scales(task: Task, config: RunConfig, counts: Sums) -> Sums:
    return loss_scales(counts, {**task.weights, **config.optim.loss_weights})


def _metrics(sums: Sums, counts: Sums, scales: Sums) -> Metrics:
    plain = loss_scales(counts, {})
    metrics = {"loss": sum(scales[k] * s for k, s in sums.items())}
    metrics |= {f"loss/{k}": plain[k] * s for k, s in sums.items()}
    return metrics | {f"count/{k}": n.astype(jnp.float32) for k, n in counts.items()}  # type: ignore[return-value]
