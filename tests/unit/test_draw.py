"""First values of parameters: the laws they follow, and what they depend on."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from refvlm_jax.nn.param import constant, normal, param, uniform
from refvlm_jax.train.draw import Start, draw
from refvlm_jax.train.model_def import define

STARTS = {
    "a": Start(normal(0.5), (64, 65)),
    "b": Start(normal(2.0), (7,)),
    "c": Start(uniform(0.1), (3, 1000)),
    "d": Start(constant(1.5), (4, 4)),
}


@pytest.fixture(scope="module")
def drawn() -> dict[str, np.ndarray]:
    return jax.device_get(jax.jit(partial(draw, starts=STARTS))(jax.random.key(0)))


def test_shapes_and_laws(drawn: dict[str, np.ndarray]) -> None:
    assert {name: value.shape for name, value in drawn.items()} == {
        name: start.shape for name, start in STARTS.items()
    }
    a, c = drawn["a"], drawn["c"]
    assert abs(a.mean()) < 0.03 and abs(a.std() - 0.5) < 0.02
    assert 0.098 < np.abs(c).max() <= 0.1 and abs(c.std() - 0.1 / 3**0.5) < 0.002
    assert (drawn["d"] == 1.5).all()


def test_no_two_blocks_repeat(drawn: dict[str, np.ndarray]) -> None:
    for name in ("a", "c"):
        assert len(np.unique(drawn[name])) > 0.99 * drawn[name].size
    assert not set(drawn["a"].ravel() * 4) & set(drawn["b"].ravel())


def test_a_value_depends_on_key_and_name_alone(drawn: dict[str, np.ndarray]) -> None:
    alone = draw(jax.random.key(0), {"b": STARTS["b"]})
    np.testing.assert_array_equal(alone["b"], drawn["b"])
    assert (draw(jax.random.key(1), {"b": STARTS["b"]})["b"] != drawn["b"]).all()
    assert (draw(jax.random.key(0), {"B": STARTS["b"]})["B"] != drawn["b"]).all()


def test_large_parameters_are_drawn_by_the_same_law(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refvlm_jax.train.draw._ALONE", 100)
    found = draw(jax.random.key(0), STARTS)
    assert abs(found["a"].std() - 0.5) < 0.02 and found["c"].shape == (3, 1000)


class _Two(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = param(rngs, normal(1.0), (32, 8), (None, None))
        self.second = param(rngs, constant(3.0), (8,), (None,))


def test_a_model_starts_by_the_laws_of_its_parameters() -> None:
    params = define(_Two).init(jax.random.key(0))
    assert abs(float(params["first"].std()) - 1) < 0.1
    assert (params["second"] == 3).all()
