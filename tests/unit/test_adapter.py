"""The two-way adapter: phrases of references, runs a row, several images, sizes, gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from refvlm_jax.config.model import AdapterConfig
from refvlm_jax.models.adapter import (
    Adapted,
    AdapterTable,
    TwoWayAdapter,
    adapter_table,
    patch_states,
    phrase_spans,
)
from refvlm_jax.train.model_def import define

OPEN, CLOSE, REF = 1, 2, 3
CONFIG = AdapterConfig(
    groups=4, phrase_length=5, ref_length=3, projection_dim=12, layers=2, heads=2, mlp_dim=12
)
WIDTH, GRID, LENGTH = 8, 2, 20


def spans_of(text: str, groups: list[int]) -> list[list[int]]:
    """Spans of a text of `P` open, `p` close, `R` reference and `.` anything else."""
    ids = {"P": OPEN, "p": CLOSE, "R": REF}
    tokens = jnp.asarray([[ids.get(c, 0) for c in text]])
    at = [i for i, c in enumerate(text) if c == "R"]
    assert len(at) == len(groups)
    pos, group = jnp.asarray([[*at, 0]]), jnp.asarray([[*groups, -1]])
    valid = jnp.asarray([[True] * len(at) + [False]])
    found = phrase_spans(tokens, pos, group, valid, open_id=OPEN, close_id=CLOSE)
    assert found[0, -1].tolist() == [0, 0]
    return found[0, :-1].tolist()


@pytest.mark.parametrize(
    ("text", "groups", "want"),
    [
        ("..P.p.uU.R.R.P..p.R.", [0, 0, 1], [[2, 5], [2, 5], [13, 17]]),
        ("P.P.p.R.p.R", [0, 1], [[2, 5], [0, 9]]),
        ("R..R", [0, 0], [[0, 0], [0, 0]]),
        ("p.P.pR", [0], [[2, 5]]),
        ("P.pp.R", [0], [[0, 3]]),
        ("pP.PR.pR", [0, 1], [[0, 0], [3, 7]]),
        ("P.p.R.R", [0, 1], [[0, 3], [0, 0]]),
        ("P...R", [0], [[0, 0]]),
    ],
)
def test_the_phrase_of_a_reference(text: str, groups: list[int], want: list[list[int]]) -> None:
    assert spans_of(text, groups) == want


def table_of(groups: list[int], images: list[int], config: AdapterConfig = CONFIG) -> AdapterTable:
    """References at positions 10, 11, ..., phrase g at [2g, 2g + 2); one empty slot at the end."""
    count = len(groups)
    group = np.array([[*groups, -1]])
    return adapter_table(
        np.stack([2 * group, 2 * group + 2], axis=-1),
        np.array([[*range(10, 10 + count), 0]]),
        group,
        np.array([[*images, 0]]),
        np.array([[True] * count + [False]]),
        config,
    )


def test_references_are_grouped_by_phrase_and_image() -> None:
    table = table_of([0, 0, 1, 1, 2], [0, 0, 0, 1, 1])
    assert table.run.tolist() == [[0, 0, 1, 2, 3, -1]]
    assert table.place[0, :5].tolist() == [0, 1, 0, 0, 0]
    want = [[10, 11, -1], [12, -1, -1], [13, -1, -1], [14, -1, -1]]
    assert table.refs[0].tolist() == want
    assert table.phrase[0, :, :3].tolist() == [[0, 1, -1], [2, 3, -1], [2, 3, -1], [4, 5, -1]]
    assert table.image.tolist() == [[0, 0, 1, 1]] and table.valid.all()


def test_what_is_too_much_is_left_out_and_said_so() -> None:
    config = dataclasses.replace(CONFIG, groups=2, ref_length=2, phrase_length=1)
    table = table_of([0, 0, 0, 1, 2], [0] * 5, config)
    assert table.run.tolist() == [[0, 0, -1, 1, -1, -1]]
    assert table.refs[0].tolist() == [[10, 11], [13, -1]]
    assert table.phrase[0].tolist() == [[0], [2]]


def test_patch_states_follow_the_visual_index() -> None:
    hidden = jnp.arange(6.0)[None, :, None] + jnp.ones((1, 6, WIDTH))
    # Text, then patches 0 and 2 of image 0, patch 1 of image 1, a region prompt; others are missing.
    index = jnp.asarray([[-1, 0, 2, 5, 8, -1]])
    found = patch_states(hidden, index, 2, GRID**2)
    assert found.shape == (1, 2, 4, WIDTH)
    assert found[0, :, :, 0].tolist() == [[2.0, 0.0, 3.0, 0.0], [0.0, 4.0, 0.0, 0.0]]


@pytest.fixture(scope="module")
def inputs() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(1, LENGTH, WIDTH)), jnp.float32)
    return hidden, jnp.asarray(rng.normal(size=(1, 2, GRID**2, WIDTH)), jnp.float32)


@pytest.fixture(scope="module")
def adapter() -> TwoWayAdapter:
    model = define(lambda rngs: TwoWayAdapter(CONFIG, WIDTH, rngs))
    return model.merge(jax.jit(model.init)(jax.random.key(0)))


def test_images_of_a_row_stay_apart(adapter: TwoWayAdapter, inputs: tuple) -> None:
    hidden, patches = inputs
    table = table_of([0, 0, 1], [0, 0, 1])
    both = adapter(hidden, patches, table)
    assert both.maps.shape == (2, GRID, GRID, WIDTH)
    changed = adapter(hidden, patches.at[:, 1].add(1.0), table)
    np.testing.assert_array_equal(changed.states[0, :2], both.states[0, :2])
    np.testing.assert_array_equal(changed.maps[0], both.maps[0])
    assert np.abs(changed.states[0, 2] - both.states[0, 2]).max() > 1e-3
    only_first = adapter(hidden, patches, table_of([0, 0], [0, 0]))
    assert np.abs(only_first.maps[1]).max() == 0
    np.testing.assert_allclose(only_first.maps[0], both.maps[0], atol=1e-6)


def test_the_picture_is_the_mean_over_the_phrases(adapter: TwoWayAdapter, inputs: tuple) -> None:
    hidden, patches = inputs
    pair, pos = table_of([0, 1], [0, 0]), np.array([[10, 11, 0]])
    alone = []
    for group in (0, 1):
        valid = np.array([[group == 0, group == 1, False]])
        spans = np.array([[[0, 2], [2, 4], [0, 0]]])
        table = adapter_table(
            spans, pos, np.array([[0, 1, -1]]), np.zeros((1, 3), int), valid, CONFIG
        )
        alone.append(adapter(hidden, patches, table).maps[0])
    found = adapter(hidden, patches, pair).maps[0]
    np.testing.assert_allclose(found, (alone[0] + alone[1]) / 2, atol=1e-6)


def test_gradients_are_finite_and_spare_the_fourier_matrix(inputs: tuple) -> None:
    hidden, patches = inputs
    table = table_of([0, 0, 1], [0, 0, 0])

    def gradients(remat: str) -> tuple[dict[str, jax.Array], jax.Array]:
        config = dataclasses.replace(CONFIG, remat=remat)
        model = define(lambda rngs: TwoWayAdapter(config, WIDTH, rngs))

        def total(params: dict[str, jax.Array], hidden: jax.Array) -> jax.Array:
            adapted: Adapted = model.merge(params)(hidden, patches, table)
            return (adapted.states**2).sum() + (adapted.maps**2).sum()

        params = jax.jit(model.init)(jax.random.key(0))
        return jax.jit(jax.grad(total, argnums=(0, 1)))(params, hidden)

    (params, states), (again, _) = gradients("none"), gradients("full")
    for name, found in params.items():
        np.testing.assert_allclose(found, again[name], rtol=1e-3, atol=1e-3)
    assert np.isfinite(states).all() and np.abs(states[0, 9]).max() > 0
    assert np.abs(params["image_position.fourier"]).max() == 0
    assert all(np.isfinite(leaf).all() for leaf in params.values())


def test_a_bare_row_is_finite(adapter: TwoWayAdapter, inputs: tuple) -> None:
    adapted = adapter(*inputs, table_of([], []))
    assert not adapted.valid.any() and np.abs(adapted.states).max() == 0
    assert np.abs(adapted.maps).max() == 0


def test_impossible_sizes_are_refused(adapter: TwoWayAdapter, inputs: tuple) -> None:
    with pytest.raises(ValueError, match="width 8 cannot be cut in half and then into 3 heads"):
        TwoWayAdapter(dataclasses.replace(CONFIG, heads=3), WIDTH, nnx.Rngs(0))
    with pytest.raises(ValueError, match="3 patches an image are no square"):
        adapter(inputs[0], inputs[1][:, :, :3], table_of([0], [0]))
