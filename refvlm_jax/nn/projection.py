"""Projections of a transformer block between its width and its heads, optionally with LoRA."""

import math
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from refvlm_jax.config.model import LoraConfig
from refvlm_jax.nn.contract import contract
from refvlm_jax.nn.lora import Lora
from refvlm_jax.nn.param import normal, param

Model = TypeVar("Model", bound=nnx.Module)


class Projection(nnx.Module):
    """A bias-free linear map with kernel[*in_shape, *out_shape], e.g. [D, H, K] for queries.

    The kernel starts normal with variance `scale` / fan-in.
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        axes: tuple[str | None, ...],
        rngs: nnx.Rngs,
        *,
        scale: float = 1.0,
        lora: LoraConfig | None = None,
    ):
        rank, fan_in = len(in_shape), math.prod(in_shape)
        self.in_rank = rank
        self.kernel = param(rngs, normal((scale / fan_in) ** 0.5), (*in_shape, *out_shape), axes)
        ends = (axes[0], axes[rank])
        sizes = fan_in, math.prod(out_shape)
        self.lora = Lora(*sizes, lora, rngs, axes=ends) if lora is not None else None

    @jax.named_scope("projection")
    def __call__(self, x: Float[Array, "*b"]) -> Float[Array, "*c"]:
        """Contracts the trailing axes of x with the kernel, in the dtype of x."""
        y = contract(x, self.kernel[...].astype(x.dtype), self.in_rank)
        if self.lora is None:
            return y
        flat = x.reshape(*x.shape[: x.ndim - self.in_rank], -1)
        return y + self.lora(flat).reshape(y.shape)

    def merged_kernel(self) -> Array:
        """The kernel with the adapter folded in, summed in fp32; leading layer axes are kept."""
        kernel = self.kernel[...]
        if self.lora is None:
            return kernel
        delta = self.lora.delta().reshape(kernel.shape)
        return (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)


def merge_lora(model: Model) -> Model:
    """A copy of `model` whose adapters are folded into the kernels beside them and then dropped."""
    merged = nnx.clone(model)
    for _, part in list(nnx.iter_graph(merged)):
        if isinstance(part, Projection):
            part.kernel[...] = part.merged_kernel()
            part.lora = None
    return merged
