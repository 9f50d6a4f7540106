"""The product of activations with a parameter, with a backward pass laid out for its compiler."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from refvlm_jax.mesh.rules import is_divided


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def contract(
    x: Float[Array, "*b"],
    kernel: Float[Array, "*k"],
    rank: int = 1,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*c"]:
    """Contracts the last `rank` axes of x with the first `rank` axes of the kernel.

    The same numbers as `jnp.tensordot`. The gradient of the kernel is written as x^T g with g made
    first: left to itself, XLA's CPU compiler computes the activation function behind g once more
    in transposed order, at twice the cost of the whole feed-forward block. On one device it is a product
    of two matrices, because operands with several axes of rows are first copied in another order; on
    several devices these axes may be divided, and are not joined.

    Args:
      dtype: of the result, in which the sums are made too; None for that of the operands.
    """
    return _product(x, kernel, rank, dtype)


def _product(x: Array, kernel: Array, rank: int, dtype: DTypeLike | None) -> Array:
    return jnp.tensordot(x, kernel, rank, preferred_element_type=dtype)


_Operands = tuple[Array, Array]


def _forward(
    x: Array, kernel: Array, rank: int, dtype: DTypeLike | None
) -> tuple[Array, _Operands]:
    # Not `contract` again: rematerialisation policies must see the product itself.
    return _product(x, kernel, rank, dtype), (x, kernel)


def _backward(rank: int, dtype: DTypeLike | None, saved: _Operands, g: Array) -> _Operands:
    x, kernel = saved
    outer = kernel.ndim - rank
    axes = (tuple(range(g.ndim - outer, g.ndim)), tuple(range(rank, kernel.ndim)))
    to_x = jax.lax.dot_general(g, kernel, (axes, ((), ())), preferred_element_type=dtype)
    to_kernel = _to_kernel(x, g, x.ndim - rank, dtype).reshape(kernel.shape)
    return to_x.astype(x.dtype), to_kernel.astype(kernel.dtype)


def _to_kernel(x: Array, g: Array, batch: int, dtype: DTypeLike | None) -> Array:
    """x^T g over the `batch` leading axes of both."""
    if not is_divided():
        rows = math.prod(x.shape[:batch])
        x, g, batch = x.reshape(rows, -1), g.reshape(rows, -1), 1
    axes = tuple(range(batch))
    return jax.lax.dot_general(x, g, ((axes, axes), ((), ())), preferred_element_type=dtype)


contract.defvjp(_forward, _backward)
