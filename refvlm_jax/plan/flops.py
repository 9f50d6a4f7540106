"""Floating-point operations of a program, counted in its jaxpr.

XLA's own counter sees the body of a loop once; here a scan counts its length. Only matrix products and
convolutions are counted, two operations a multiply-add, as is usual for model FLOPs; what they carry is
split by the module that asked for it (`jax.named_scope`) and by whether rematerialisation asked again.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from refvlm_jax.nn.attention import RECOMPUTED

_WRAPPER = re.compile(r"^(?:transpose|jvp|vmap|jit|checkpoint|remat)\((.*)\)$")
_NOISE = {"", "jit", "while", "body", "cond", "checkpoint", "remat", RECOMPUTED, "closed_call"}


@dataclasses.dataclass
class Flops:
    """Operations of a program on all devices together."""

    total: float = 0.0
    """With what rematerialisation computes again."""
    model: float = 0.0
    """Without it: the numerator of MFU."""
    by_module: dict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    """First named scope -> operations, recomputation included."""
    product_bytes: float = 0.0
    """Operands and results of all products, each read or written once."""
    unknown_loops: int = 0
    """While loops whose length is not known; their bodies count once."""


def count_flops(jaxpr: Any) -> Flops:
    """Counts a `jax.core.Jaxpr` after leaving out what no result needs."""
    found = Flops()
    _walk(live(jaxpr), 1, "", found)
    found.by_module = dict(sorted(found.by_module.items(), key=lambda item: -item[1]))
    return found


def scopes(name_stack: str) -> list[str]:
    """The named scopes of a name stack, outermost first, without JAX's own wrappers."""
    found = [_unwrap(part) for part in name_stack.split("/")]
    # `jnp.einsum` names a scope after its equation.
    return [s for s in found if s not in _NOISE and "->" not in s]


def _unwrap(part: str) -> str:
    while found := _WRAPPER.match(part):
        part = found[1]
    return part


def live(jaxpr: Any) -> Any:
    """The jaxpr without dead equations, such as gradients of frozen parameters."""
    from jax.interpreters import partial_eval

    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)[0]


def _walk(jaxpr: Any, times: float, outer: str, found: Flops) -> None:
    for equation in jaxpr.eqns:
        stack = "/".join(filter(None, (outer, str(equation.source_info.name_stack))))
        name = equation.primitive.name
        if (kernel := _kernel(equation)) is not None:
            total, model = kernel
            found.total += times * total
            found.model += times * model * (RECOMPUTED not in stack)
            found.by_module[next(iter(scopes(stack)), "step")] += times * total
            found.product_bytes += times * _bytes(equation)
            continue
        if operations := _operations(equation):
            found.total += times * operations
            if RECOMPUTED not in stack:
                found.model += times * operations
            module = next(iter(scopes(stack)), "step")
            found.by_module[module] += times * operations
            found.product_bytes += times * _bytes(equation)
            continue
        inner = list(sub_jaxprs(equation))
        if name == "cond":
            # The dearest branch: a bound from above.
            inner = sorted(inner, key=lambda j: count_flops(j).total)[-1:]
        if name == "while" and any(count_flops(j).total for j in inner):
            found.unknown_loops += 1
        factor = equation.params["length"] if name == "scan" else 1
        for sub in inner:
            _walk(sub, times * factor, stack, found)


def sub_jaxprs(equation: Any) -> Iterator[Any]:
    """The jaxprs inside an equation's parameters."""
    for value in equation.params.values():
        for part in value if isinstance(value, list | tuple) else (value,):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                yield inner


_SPLASH = {"splash_mqa_fwd": (2, 2), "splash_mqa_dkv": (4, 3), "splash_mqa_dq": (3, 1)}
"""Kernel -> products of all pairs of positions that it makes, and how many of them are no repetition."""
_CUDNN = {"dot_product_attention_fwd": (2, 2), "dot_product_attention_bwd": (5, 4)}


def _kernel(equation: Any) -> tuple[float, float] | None:
    """Operations of an attention kernel, with and without what it computes again; None if it is none.

    Splash skips the blocks above the diagonal: half of all pairs. A kernel that is not known counts
    nothing, for its body says nothing of its grid.
    """
    name = equation.primitive.name
    counts: tuple[int, int] | None
    if name == "pallas_call":
        label = str(equation.params.get("name") or "")
        counts = next((c for start, c in _SPLASH.items() if label.startswith(start)), (0, 0))
        queries = next((v.aval for v in equation.invars if v.aval.dtype.kind not in "iub"), None)
        pairs = 0.0 if queries is None else math.prod(queries.shape) * queries.shape[-2] / 2
    elif counts := next((c for start, c in _CUDNN.items() if name.startswith(start)), None):
        queries, keys = (v.aval for v in equation.invars[:2])
        pairs = math.prod(queries.shape) * keys.shape[1]
    else:
        return None
    return 2.0 * pairs * counts[0], 2.0 * pairs * counts[1]


def _operations(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel, spec = equation.invars[1].aval, params["dimension_numbers"].rhs_spec
        products = kernel.size / max(kernel.shape[spec[0]], 1)
        # The gradient of a grouped convolution's kernel is a convolution in groups of the batch.
        return 2.0 * equation.outvars[0].aval.size * products / params["batch_group_count"]
    return 0.0


def _bytes(equation: Any) -> float:
    values = [v.aval for v in (*equation.invars, *equation.outvars)]
    return float(sum(v.size * v.dtype.itemsize for v in values))
