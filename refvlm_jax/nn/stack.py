"""A scanned stack of equal layers: one compiled body, stacked parameters, rematerialisation."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "offload": jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
}


class Stack(nnx.Module):
    """`layers` copies of a module with their parameters stacked on a leading axis `layers`.

    Layer l starts exactly as `build` would start it alone with the l-th split of the key. `unroll`
    lays the loop out: for stacks so shallow that carrying values through a loop costs more than the
    layers do.
    """

    def __init__(
        self,
        build: Callable[[nnx.Rngs], nnx.Module],
        layers: int,
        rngs: nnx.Rngs,
        *,
        unroll: bool = False,
    ):
        self.layers = layers
        self.unroll = unroll

        @nnx.split_rngs(splits=layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(keys: nnx.Rngs) -> nnx.Module:
            return build(keys)

        self.block = make(rngs)
        for _, variable in nnx.to_flat_state(nnx.state(self.block, nnx.Param)):
            variable.set_metadata(axes=("layers", *variable.get_metadata()["axes"]))

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

        Args:
          xs: per-layer inputs, one entry for every layer of the whole stack.
          remat: what the backward pass recomputes: `none`, `full` (the whole body), `dots` (all but
            the products with parameters), `offload` (like `dots`, and these wait in the host's memory).

        Returns the last carry and the ys of every layer, stacked.
        """
        graph, params = nnx.split(self.block)

        def step(carry: Any, inputs: Any) -> tuple[Any, Any]:
            layer_params, x = inputs
            return body(nnx.merge(graph, layer_params), carry, x)

        if remat != "none":
            # A loop already keeps XLA from merging the recomputation with the forward pass.
            step = jax.checkpoint(step, policy=REMAT[remat], prevent_cse=self.unroll)
        stop = self.layers if stop is None else stop
        if (start, stop) != (0, self.layers):
            params, xs = jax.tree.map(lambda p: p[start:stop], (params, xs))
        return jax.lax.scan(step, carry, (params, xs), unroll=self.unroll)
