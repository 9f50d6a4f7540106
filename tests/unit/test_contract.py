"""The product with a parameter and its gradients, against NumPy's tensordot."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refvlm_jax.config.resolve import resolve
from refvlm_jax.mesh.build import make_mesh, make_rules
from refvlm_jax.mesh.rules import constrain, use_sharding
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


@pytest.mark.multidevice
def test_divided_rows_give_the_same_gradients() -> None:
    config = resolve({"name": "m", "mesh": {"preset": "fsdp_seq", "shape": (1, 2, 4, 1)}})
    mesh, rules = make_mesh(config.mesh, jax.devices()[:8]), make_rules(config.mesh)
    x, kernel = jax.random.normal(jax.random.key(0), (4, 8, 6)), jnp.ones((6, 5))

    def gradients(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.grad(lambda x, k: jnp.sin(contract(x, k)).sum(), (0, 1))(x, kernel)

    @jax.jit
    def divided(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        with use_sharding(mesh, rules):
            return gradients(constrain(x, "batch", "length", None), kernel)

    assert "all-gather" not in divided.lower(x, kernel).compile().as_text()
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        divided(x, kernel), gradients(x, kernel),
    )  # fmt: skip


def test_sums_can_be_made_in_another_dtype() -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = (jax.random.normal(k, (64, 64), jnp.bfloat16) for k in keys[:2])
    y, pull = jax.vjp(lambda x, k: contract(x, k, 1, jnp.float32), x, kernel)
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, exact, rtol=1e-4, atol=1e-4)
    g = jax.random.normal(keys[2], y.shape)
    for found, want in zip(pull(g), (g @ kernel.T, x.T @ g), strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(jnp.float32), want, rtol=0.02, atol=0.05)


def test_results_keep_the_dtype_of_their_operands() -> None:
    x, kernel = jnp.ones((3, 2), jnp.bfloat16), jnp.ones((2, 4), jnp.bfloat16)
    y, pull = jax.vjp(lambda x, k: contract(x, k, 1), x, kernel)
    assert {y.dtype, *(g.dtype for g in pull(y))} == {jnp.dtype(jnp.bfloat16)}
