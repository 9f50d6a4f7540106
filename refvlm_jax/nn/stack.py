"""A scanned stack of equal layers: one compiled body, stacked parameters, rematerialisation."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Stack(nnx.Module):
    """`layers` copies of a module with their parameters stacked on a leading axis."""

    def __init__(self, build: Callable[[nnx.Rngs], nnx.Module], layers: int, rngs: nnx.Rngs):
        self.layers = layers

        @nnx.split_rngs(splits=layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(keys: nnx.Rngs) -> nnx.Module:
            return build(keys)

        self.block = make(rngs)

    def scan(
        self,
        body: Callable[[Any, Any, Any], tuple[Any, Any]],
        carry: Any,
        xs: Any = None,
        *,
        remat: str = "none",
        start: int = 0,
        stop: int | None = None,
    ) -> tuple[Any, Any]:
        """Runs `body(layer, carry, x) -> (carry, y)` over layers start..stop.

        Returns the last carry and the stacked ys.
        """
        graph, params = nnx.split(self.block)

        def step(carry: Any, inputs: Any) -> tuple[Any, Any]:
            layer_params, x = inputs
            return body(nnx.merge(graph, layer_params), carry, x)

        if remat != "none":
            step = jax.checkpoint(step, policy=REMAT[remat])
        if (start, stop) != (0, None):
            params, xs = jax.tree.map(lambda p: p[start:stop], (params, xs))
        return jax.lax.scan(step, carry, (params, xs))

    def one(self, layer: int) -> Any:
        """A single layer of the stack, for code that runs it outside the scan."""
        graph, params = nnx.split(self.block)
        return nnx.merge(graph, jax.tree.map(lambda p: p[layer], params))
