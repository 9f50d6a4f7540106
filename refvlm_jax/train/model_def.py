"""A model as data: its static structure and its parameters under our own dotted names.

This is the only file of training that knows NNX. Parameters travel as flat dictionaries
`{"llama.blocks.attn.q.kernel": array}`, which checkpoints, optimiser groups and converters share.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from refvlm_jax.train.draw import Start, draw

Params = dict[str, jax.Array]
ModelFn = Callable[[nnx.Rngs], nnx.Module]


def is_constant(name: str) -> bool:
    """Whether a parameter is a random matrix drawn once: never trained, and always float32.

    Rounding the matrix of Fourier features would shift the phases of every position.
    """
    return name.rsplit(".", 1)[-1] == "fourier"


@dataclass(frozen=True)
class ModelDef:
    """Structure of a model without its numbers; hashable parts only matter to `merge`."""

    model_fn: ModelFn
    graphdef: Any
    variables: Mapping[str, tuple[tuple[Any, ...], nnx.Variable]]
    """Name -> (NNX path, abstract variable)."""
    axes: Mapping[str, tuple[str | None, ...]]
    """Name -> logical axes, one a dimension."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape."""
        return {name: variable.get_value().shape for name, (_, variable) in self.variables.items()}

    def init(self, key: jax.Array) -> Params:
        """All parameters drawn from `key`; meant to run under `jax.jit`."""
        return draw(key, {name: _start(v) for name, (_, v) in self.variables.items()})

    def check(self, params: Mapping[str, Any]) -> None:
        """Raises ValueError naming the first parameter that is missing or has another shape."""
        for name, shape in self.shapes.items():
            found = tuple(params[name].shape) if name in params else None
            if found != shape:
                raise ValueError(
                    f"parameter {name} has the shape {shape} in the configured model, but "
                    f"{found or 'none'} in the checkpoint; use the model section it was made with"
                )

    def merge(self, *params: Mapping[str, jax.Array]) -> Any:
        """The model holding these parameters; called while a step is traced."""
        values = {name: value for part in params for name, value in part.items()}
        flat = {
            path: variable.replace(values[name])
            for name, (path, variable) in self.variables.items()
        }
        return nnx.merge(self.graphdef, nnx.State.from_flat_path(flat))


def define(model_fn: ModelFn) -> ModelDef:
    """Runs the constructor on shapes only.

    Raises:
      ValueError: the model holds state that is not a parameter, or a parameter without axes.
    """
    abstract = nnx.eval_shape(lambda: model_fn(nnx.Rngs(0)))
    graphdef, params, rest = nnx.split(abstract, nnx.Param, ...)  # type: ignore[misc]
    if extra := [_name(path) for path, _ in rest.flat_state()]:
        raise ValueError(f"model state that is not a parameter: {extra}; pass it as an argument")
    variables = {_name(path): (path, variable) for path, variable in params.flat_state()}
    axes = {name: _axes(name, variable) for name, (_, variable) in variables.items()}
    return ModelDef(model_fn, graphdef, variables, axes)


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def _axes(name: str, variable: nnx.Variable) -> tuple[str | None, ...]:
    """Logical axes of a parameter; dimensions added in front by a stacked init are `layers`."""
    axes = variable.get_metadata().get("axes")
    if axes is None:
        raise ValueError(f"parameter {name} has no logical axes; declare it with nn.param.param")
    return ("layers",) * (len(variable.get_value().shape) - len(axes)) + tuple(axes)


def _start(variable: nnx.Variable) -> Start:
    value = variable.get_value()
    return Start(variable.get_metadata()["law"], tuple(value.shape), value.dtype)
