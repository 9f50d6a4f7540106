"""The product of activations with a parameter, with a backward pass laid out for its compiler."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def contract(
    x: Float[Array, "*b"], kernel: Float[Array, "*k"], rank: int = 1
) -> Float[Array, "*c"]:
    """Contracts the last `rank` axes of x with the first `rank` axes of the kernel.

    The same numbers as `jnp.tensordot`. The gradient of the kernel is written as x^T g with g made
    first: left to itself, XLA's CPU compiler computes the activation function behind g once more
    in transposed order, at twice the cost of the whole feed-forward block.
    """
    return jnp.tensordot(x, kernel, rank)


def _forward(x: Array, kernel: Array, rank: int) -> tuple[Array, tuple[Array, Array]]:
    # Not `contract` again: rematerialisation policies must see the product itself.
    return jnp.tensordot(x, kernel, rank), (x, kernel)


def _backward(rank: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    outer = kernel.ndim - rank
    to_x = (tuple(range(g.ndim - outer, g.ndim)), tuple(range(rank, kernel.ndim)))
    batch = tuple(range(x.ndim - rank))
    return (
        jax.lax.dot_general(g, kernel, (to_x, ((), ()))),
        jax.lax.dot_general(x, g, ((batch, batch), ((), ()))),
    )


contract.defvjp(_forward, _backward)
