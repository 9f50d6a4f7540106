"""Activation functions by name."""

from collections.abc import Callable
from functools import partial

import jax
from jaxtyping import Array, Float


def quick_gelu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """CLIP's approximation x * sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


gelu = partial(jax.nn.gelu, approximate=False)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"quick_gelu": quick_gelu, "gelu": gelu}
