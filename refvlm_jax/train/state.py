"""The training state and its birth: abstract first, then every array created where it lives."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from refvlm_jax.mesh.rules import ShardingRules
from refvlm_jax.mesh.shardings import like_params, param_shardings
from refvlm_jax.train.model_def import ModelDef, Params, is_constant


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes; abstract or real arrays."""

    step: Any
    """int32[] completed optimiser steps; also the position in the data."""
    params: Any
    """`Params`: trained parameters by dotted name."""
    opt_state: optax.OptState
    rng: Any
    """uint32[2] key data of the run; constant, folded with the step where randomness is needed."""


@dataclasses.dataclass(frozen=True)
class StatePlan:
    """Shapes, dtypes and shardings of a run's arrays before any of them exists."""

    model: ModelDef
    tx: optax.GradientTransformation
    state: TrainState
    """Leaves are `jax.ShapeDtypeStruct` with a NamedSharding."""
    frozen: dict[str, jax.ShapeDtypeStruct]
    """Parameters that are not trained."""


def build(
    model: ModelDef,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    rules: ShardingRules,
    trainable: Callable[[str], bool],
    *,
    param_dtype: str = "float32",
    frozen_dtype: str = "float32",
) -> StatePlan:
    """Plans the state of a run; touches no device memory.

    Args:
      trainable: dotted name -> whether the optimiser sees the parameter.
    """
    shapes = model.shapes
    shardings = param_shardings(shapes, model.axes, mesh, rules)
    dtypes = {
        n: "float32" if is_constant(n) else param_dtype if trainable(n) else frozen_dtype
        for n in shapes
    }
    abstract = {
        n: jax.ShapeDtypeStruct(shapes[n], jnp.dtype(dtypes[n]), sharding=shardings[n])
        for n in shapes
    }
    params = {n: a for n, a in abstract.items() if trainable(n)}
    frozen = {n: a for n, a in abstract.items() if not trainable(n)}
    whole = NamedSharding(mesh, PartitionSpec())
    state = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32, sharding=whole),
        params=params,
        opt_state=like_params(jax.eval_shape(tx.init, params), shardings, shapes, mesh),
        rng=jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=whole),
    )
    return StatePlan(model, tx, state, frozen)


def shardings_of(abstract: Any) -> Any:
    """The shardings of an abstract tree."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def initialize(
    plan: StatePlan, seed: int, initial: Mapping[str, np.ndarray | jax.Array] | None = None
) -> tuple[TrainState, Params]:
    """Creates the state and the frozen parameters, sharded from birth.

    Args:
      seed: of the parameters and of dropout.
      initial: values by dotted name in place of random ones (converted or earlier weights): host
        arrays, or arrays laid out as planned. Nothing is drawn for these.

    Raises:
      ValueError: an initial array is unknown to the model or has another shape.
    """
    init_key, run_key = jax.random.split(jax.random.key(seed))
    whole = plan.state.step.sharding
    wanted = {**plan.state.params, **plan.frozen}
    given = _given(wanted, initial or {})
    rest = {name: a for name, a in wanted.items() if name not in given}

    def create(key: Array) -> Params:
        values = plan.model.init(key)
        return {name: values[name].astype(a.dtype) for name, a in rest.items()}

    drawn = jax.jit(create, out_shardings=shardings_of(rest))(init_key)
    values = {**drawn, **given}
    params, frozen = ({n: values[n] for n in part} for part in (plan.state.params, plan.frozen))
    opt_state = jax.jit(plan.tx.init, out_shardings=shardings_of(plan.state.opt_state))(params)
    step = jax.device_put(np.int32(0), whole)
    rng = jax.device_put(np.asarray(jax.random.key_data(run_key)), whole)
    return TrainState(step, params, opt_state, rng), frozen


def _given(
    wanted: Mapping[str, jax.ShapeDtypeStruct], initial: Mapping[str, np.ndarray | jax.Array]
) -> Params:
    found = {}
    for name, value in initial.items():
        if name not in wanted:
            raise ValueError(f"initial parameter {name} is unknown to the model; remove it")
        if tuple(value.shape) != wanted[name].shape:
            expected = wanted[name].shape
            raise ValueError(f"initial parameter {name}: expected {expected}, found {value.shape}")
        found[name] = value if isinstance(value, jax.Array) else place(value, wanted[name])
    return found


def place(value: np.ndarray, target: jax.ShapeDtypeStruct) -> jax.Array:
    """A host array that every process holds whole, laid out as `target`; each reads its part."""
    cast = np.asarray(value).astype(target.dtype)
    return jax.make_array_from_callback(target.shape, target.sharding, lambda index: cast[index])
