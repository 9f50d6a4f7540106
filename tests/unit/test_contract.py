"""The product with a parameter and its gradients, against NumPy's tensordot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refvlm_jax.nn.contract import contract

SHAPES = {
    "matrix": ((2, 5, 6), (6, 4), 1),
    "heads out": ((2, 5, 6), (6, 3, 4), 1),
    "heads in": ((2, 5, 3, 4), (3, 4, 6), 2),
    "one vector": ((6,), (6, 4), 1),
}


@pytest.mark.parametrize("name", SHAPES)
def test_value_and_gradients(name: str) -> None:
    x_shape, kernel_shape, rank = SHAPES[name]
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], x_shape), jax.random.normal(keys[1], kernel_shape)
    y, pull = jax.vjp(lambda x, k: contract(x, k, rank), x, kernel)
    np.testing.assert_allclose(y, np.tensordot(x, kernel, rank), rtol=1e-5, atol=1e-5)
    g = jax.random.normal(keys[2], y.shape)
    wanted = jax.vjp(lambda x, k: jnp.tensordot(x, k, rank), x, kernel)[1](g)
    for found, want in zip(pull(g), wanted, strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


def test_results_keep_the_dtype_of_their_operands() -> None:
    x, kernel = jnp.ones((3, 2), jnp.bfloat16), jnp.ones((2, 4), jnp.bfloat16)
    y, pull = jax.vjp(lambda x, k: contract(x, k, 1), x, kernel)
    assert {y.dtype, *(g.dtype for g in pull(y))} == {jnp.dtype(jnp.bfloat16)}
