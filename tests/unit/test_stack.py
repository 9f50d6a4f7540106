"""The scanned stack: births, order of layers, per-layer outputs, rematerialisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr

from refvlm_jax.nn.linear import Linear
from refvlm_jax.nn.stack import REMAT, Stack

LAYERS = 4


class Layer(nnx.Module):
    """Something with a nested list, two parameters and no symmetry between layers."""

    def __init__(self, rngs: nnx.Rngs):
        self.parts = nnx.List([Linear(3, 3, rngs, axes=("embed", "mlp"))])

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + jnp.sin(self.parts[0](x))


@pytest.fixture(scope="module")
def stack() -> Stack:
    return Stack(Layer, LAYERS, nnx.Rngs(7))


@pytest.fixture(scope="module")
def x() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), jnp.float32)


def by_hand(stack: Stack, x: jax.Array, layers: range) -> list[np.ndarray]:
    """Every layer's output, one layer after the other in NumPy."""
    linear = stack.block.parts[0]
    kernel, bias = np.asarray(linear.kernel[...]), np.asarray(linear.bias[...])
    outputs, y = [], np.asarray(x)
    for layer in layers:
        y = y + np.sin(y @ kernel[layer] + bias[layer])
        outputs.append(y)
    return outputs


def apply(layer: Layer, x: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
    y = layer(x)
    return y, y


def test_each_layer_is_born_as_it_would_be_alone(stack: Stack) -> None:
    keys = jax.random.split(nnx.Rngs(7).params(), LAYERS)
    for index, key in enumerate(keys):
        alone = Layer(nnx.Rngs(key)).parts[0]
        np.testing.assert_array_equal(stack.block.parts[0].kernel[...][index], alone.kernel[...])
        np.testing.assert_array_equal(stack.block.parts[0].bias[...][index], alone.bias[...])


def test_the_leading_axis_is_named(stack: Stack) -> None:
    linear = stack.block.parts[0]
    assert linear.kernel.get_metadata()["axes"] == ("layers", "embed", "mlp")
    assert linear.bias.get_metadata()["axes"] == ("layers", "mlp")


def test_scan_runs_the_layers_in_order_and_returns_every_output(stack: Stack, x: jax.Array) -> None:
    last, outputs = stack.scan(apply, x)
    np.testing.assert_allclose(outputs, by_hand(stack, x, range(LAYERS)), atol=1e-6)
    np.testing.assert_array_equal(last, outputs[-1])


def test_a_part_of_the_stack(stack: Stack, x: jax.Array) -> None:
    def body(layer: Layer, y: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        return layer(y), index

    last, indices = stack.scan(body, x, jnp.arange(LAYERS), start=1, stop=3)
    np.testing.assert_array_equal(indices, [1, 2])
    np.testing.assert_allclose(last, by_hand(stack, x, range(1, 3))[-1], atol=1e-6)


@pytest.mark.parametrize("remat", REMAT)
def test_rematerialisation_changes_no_number(stack: Stack, x: jax.Array, remat: str) -> None:
    graph, params = nnx.split(stack)

    def loss(params: nnx.State, policy: str) -> jax.Array:
        return nnx.merge(graph, params).scan(apply, x, remat=policy)[0].sum()

    grads, plain = (jax.jit(jax.grad(loss), static_argnums=1)(params, p) for p in (remat, "none"))
    for found, want in zip(jax.tree.leaves(grads), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def products(jaxpr: Jaxpr) -> int:
    """How many products a program holds, those of its inner programs included."""
    total = 0
    for equation in jaxpr.eqns:
        total += equation.primitive.name == "dot_general"
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda v: isinstance(v, Jaxpr | ClosedJaxpr)
        ):
            if isinstance(value, ClosedJaxpr):
                value = value.jaxpr
            total += products(value) if isinstance(value, Jaxpr) else 0
    return total


def test_full_recomputes_the_products_and_dots_keeps_them(stack: Stack, x: jax.Array) -> None:
    graph, params = nnx.split(stack)

    def count(remat: str) -> int:
        def loss(params: nnx.State) -> jax.Array:
            return nnx.merge(graph, params).scan(apply, x, remat=remat)[0].sum()

        return products(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)

    assert count("full") > count("dots") == count("none")
