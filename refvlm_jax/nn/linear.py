"""Linear maps; every projection of the library goes through here."""

import itertools

import jax
from flax import nnx
from jaxtyping import Array, Float

from refvlm_jax.nn.contract import contract
from refvlm_jax.nn.param import Law, param, uniform


def torch_uniform(fan_in: int) -> Law:
    """PyTorch's default for Linear and Conv, weight and bias: U(±1 / sqrt(fan_in))."""
    return uniform(fan_in**-0.5)


class Linear(nnx.Module):
    """x[..., in] -> x @ kernel[in, out] + bias[out], in the dtype of x."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rngs: nnx.Rngs,
        *,
        axes: tuple[str | None, str | None] = (None, None),
        bias: bool = True,
        kernel_init: Law | None = None,
        bias_init: Law | None = None,
    ):
        default = torch_uniform(in_features)
        self.kernel = param(rngs, kernel_init or default, (in_features, out_features), axes)
        self.bias = param(rngs, bias_init or default, (out_features,), axes[1:]) if bias else None

    @jax.named_scope("linear")
    def __call__(self, x: Float[Array, "*b I"]) -> Float[Array, "*b O"]:
        """Applies the map."""
        y = contract(x, self.kernel[...].astype(x.dtype))
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class MLP(nnx.Module):
    """Linear layers with ReLU between them (DETR's prediction heads)."""

    def __init__(self, sizes: tuple[int, ...], rngs: nnx.Rngs):
        pairs = itertools.pairwise(sizes)
        self.layers = nnx.List([Linear(i, o, rngs) for i, o in pairs])

    @jax.named_scope("mlp")
    def __call__(self, x: Float[Array, "*b I"]) -> Float[Array, "*b O"]:
        """Applies the layers."""
        for index, layer in enumerate(self.layers):
            x = layer(x if index == 0 else jax.nn.relu(x))
        return x
