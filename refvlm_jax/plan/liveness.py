"""How much memory a program's intermediate values need at once, estimated from its jaxpr alone.

Values are counted from the equation that makes them to the last that reads them. What XLA fuses is not
counted: element-wise results, casts and reshapes cost nothing unless a product, a loop or another
operation that cannot be fused reads them. A value with the shape of a parameter is sharded like it.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from refvlm_jax.plan.flops import live, scopes, sub_jaxprs

_FUSED = {
    "abs", "add", "add_any", "and", "broadcast_in_dim", "clamp", "convert_element_type", "copy",
    "copy_p", "cos", "div", "eq", "erf", "exp", "expand_dims", "exp2", "expm1", "floor", "ge", "gt",
    "integer_pow", "iota", "is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min", "mul",
    "name", "ne", "neg", "not", "or", "pow", "reshape", "round", "rsqrt", "select_n", "sign", "sin",
    "slice", "split", "sqrt", "square", "squeeze", "stop_gradient", "sub", "tanh", "transpose", "xor",
    "sharding_constraint", "pad", "reduce_precision",
}  # fmt: skip
_REDUCTIONS = {
    "reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "reduce_prod", "argmax",
    "argmin",
}  # fmt: skip
"""Their operands are made on the fly as well, their results are stored."""
_CALLS = {
    "jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call",
    "custom_vjp_call_jaxpr", "remat", "remat2", "checkpoint", "custom_lin",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One array that is alive at the peak."""

    bytes: float
    shape: tuple[int, ...]
    dtype: str
    scope: str
    """Named scopes that made it."""


@dataclasses.dataclass(frozen=True)
class Peak:
    """The moment of largest need."""

    bytes: float
    tensors: tuple[Tensor, ...]
    """What is alive then, largest first."""


Share = Callable[[tuple[int, ...]], float]


def peak_of(jaxpr: Any, shards: Mapping[tuple[int, ...], float]) -> Peak:
    """The peak of the values between a program's arguments and its results.

    Args:
      shards: shape of a parameter -> devices it is spread over.
    """
    found = _peak(live(jaxpr), lambda shape: 1.0 / shards.get(shape, 1.0), "")
    return Peak(found.bytes, tuple(sorted(found.tensors, key=lambda t: -t.bytes)))


def _peak(jaxpr: Any, share: Share, outer: str, loop_inputs: int = 0) -> Peak:
    """The peak inside one jaxpr; the last `loop_inputs` arguments are slices that count as well."""
    reads, last = _readers(jaxpr)
    made = {v for e in jaxpr.eqns for v in e.outvars}
    alive: dict[Any, Tensor] = {}
    if loop_inputs:
        for var in jaxpr.invars[-loop_inputs:]:
            alive[var] = _tensor(var, lambda shape: 1.0, outer)
    # A stored value lives until the last reader of any fused value made of it.
    for index in range(len(jaxpr.eqns) - 1, -1, -1):
        equation = jaxpr.eqns[index]
        if is_fused(equation):
            end = max([last.get(v, index) for v in equation.outvars], default=index)
            for var in equation.invars:
                if _is_var(var):
                    last[var] = max(last.get(var, index), end)
    best = Peak(_total(alive), tuple(alive.values()))
    for index, equation in enumerate(jaxpr.eqns):
        stack = "/".join(filter(None, (outer, str(equation.source_info.name_stack))))
        inner = _inside(equation, share, stack)
        for var in equation.outvars:
            if _stored(var, equation, reads) and var in made:
                alive[var] = _tensor(var, share, stack)
        total = _total(alive) + inner.bytes
        if total > best.bytes:
            best = Peak(total, (*alive.values(), *inner.tensors))
        for var in [v for v in alive if last.get(v, -1) <= index]:
            del alive[var]
    return best


def is_fused(equation: Any) -> bool:
    """Whether XLA makes an equation's results on the fly inside their readers."""
    name = equation.primitive.name
    if name in _CALLS:
        return all(is_fused(e) for j in sub_jaxprs(equation) for e in j.eqns)
    return name in _FUSED


def _readers(jaxpr: Any) -> tuple[dict[Any, bool], dict[Any, int]]:
    """Value -> whether something that is not fused reads it, and -> index of its last reader."""
    unfused: dict[Any, bool] = {}
    last: dict[Any, int] = {}
    for index, equation in enumerate(jaxpr.eqns):
        fused = is_fused(equation) or equation.primitive.name in _REDUCTIONS
        for var in equation.invars:
            if _is_var(var):
                unfused[var] = unfused.get(var, False) or not fused
                last[var] = index
    for var in jaxpr.outvars:
        if _is_var(var):
            last[var] = len(jaxpr.eqns)
    return unfused, last


def _stored(var: Any, equation: Any, unfused: Mapping[Any, bool]) -> bool:
    return not is_fused(equation) or unfused.get(var, False)


def _inside(equation: Any, share: Share, stack: str) -> Peak:
    """What an equation needs beside its operands and results."""
    if is_fused(equation):
        return Peak(0.0, ())
    inputs = 0
    if equation.primitive.name == "scan":
        params = equation.params
        inputs = len(equation.invars) - params["num_consts"] - params["num_carry"]
    found = [_peak(inner, share, stack, inputs) for inner in sub_jaxprs(equation)]
    return max(found, key=lambda p: p.bytes, default=Peak(0.0, ()))


def _is_var(var: Any) -> bool:
    return not hasattr(var, "val")


def _total(alive: Mapping[Any, Tensor]) -> float:
    return sum(t.bytes for t in alive.values())


def _tensor(var: Any, share: Share, stack: str) -> Tensor:
    aval = var.aval
    shape = tuple(getattr(aval, "shape", ()))
    itemsize = getattr(getattr(aval, "dtype", None), "itemsize", 0)
    size = math.prod(shape) * itemsize * share(shape)
    return Tensor(size, shape, str(getattr(aval, "dtype", "")), "/".join(scopes(stack)))
