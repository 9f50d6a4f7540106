"""Group matching against SciPy, group by group."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from refvlm_jax.batch import NO_GROUP
from refvlm_jax.models.units.matching import match_groups

SLOTS = 8
MATCH = jax.jit(match_groups)


def group_optimum(cost: np.ndarray, members: np.ndarray) -> float:
    block = cost[np.ix_(members, members)]
    rows, columns = linear_sum_assignment(block)
    return float(block[rows, columns].sum())


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(cost, group, valid) of one row: groups of any size, empty references anywhere."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    valid = np.array(draw(st.lists(st.booleans(), min_size=SLOTS, max_size=SLOTS)))
    group = np.array(draw(st.lists(st.integers(0, 3), min_size=SLOTS, max_size=SLOTS)))
    return rng.normal(size=(SLOTS, SLOTS)).astype(np.float32), group, valid


def matched(cost: np.ndarray, group: np.ndarray, valid: np.ndarray) -> np.ndarray:
    group = np.where(valid, group, NO_GROUP)
    return np.asarray(MATCH(jnp.asarray(cost)[None], group[None], valid[None]))[0]


@settings(deadline=None, max_examples=150)
@given(tables())
def test_every_group_gets_its_cheapest_assignment(table: tuple) -> None:
    cost, group, valid = table
    target = matched(cost, group, valid)
    assert sorted(target) == list(range(SLOTS))
    for name in set(group[valid]):
        members = np.flatnonzero(valid & (group == name))
        assert set(target[members]) == set(members)
        found = float(cost[members, target[members]].sum())
        assert found == pytest.approx(group_optimum(cost, members), abs=1e-4)


@settings(deadline=None, max_examples=50)
@given(tables(), st.sampled_from([np.nan, np.inf, -np.inf]), st.integers(0, SLOTS - 1))
def test_a_broken_prediction_stays_in_its_group(table: tuple, bad: float, row: int) -> None:
    cost, group, valid = table
    cost = cost.copy()
    cost[row] = bad
    target = matched(cost, group, valid)
    for name in set(group[valid]):
        members = np.flatnonzero(valid & (group == name))
        assert set(target[members]) == set(members)
        healthy = members[members != row]
        if len(healthy) < len(members):
            continue
        found = float(cost[members, target[members]].sum())
        assert found == pytest.approx(group_optimum(cost, members), abs=1e-4)


def test_without_a_valid_reference_nothing_moves() -> None:
    cost = np.ones((SLOTS, SLOTS), np.float32)
    none = np.zeros(SLOTS, bool)
    np.testing.assert_array_equal(matched(cost, np.zeros(SLOTS, int), none), np.arange(SLOTS))


def test_a_group_of_one_answers_itself_whatever_it_costs() -> None:
    cost = np.full((SLOTS, SLOTS), -5.0, np.float32)
    np.fill_diagonal(cost, 100.0)
    every = np.ones(SLOTS, bool)
    np.testing.assert_array_equal(matched(cost, np.arange(SLOTS), every), np.arange(SLOTS))
