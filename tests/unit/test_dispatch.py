"""References to query slots and back."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from refvlm_jax.models.units.dispatch import gather_queries, scatter_back, slots
from refvlm_jax.trp.tokens import Unit

REFS, IMAGES, QUERIES = 7, 2, 3
rows = st.lists(
    st.tuples(st.booleans(), st.sampled_from([Unit.BOX, Unit.MASK]), st.integers(0, IMAGES - 1)),
    min_size=REFS,
    max_size=REFS,
)


def expected_slots(row: list, unit: Unit) -> list[int]:
    """Slot of every reference, counted by hand."""
    used = [0] * IMAGES
    found = []
    for valid, own, image in row:
        takes = valid and own is unit and used[image] < QUERIES
        found.append(used[image] if takes else -1)
        used[image] += takes
    return found


def table_of(row: list, unit: Unit):
    valid, units, images = (np.array(column)[None] for column in zip(*row, strict=True))
    return slots(valid, units, images, unit, IMAGES, QUERIES)


@settings(deadline=None, max_examples=100)
@given(rows, st.sampled_from([Unit.BOX, Unit.MASK]))
def test_slots_are_filled_in_text_order_and_overflow_is_left_out(row: list, unit: Unit) -> None:
    table = table_of(row, unit)
    want = expected_slots(row, unit)
    assert np.asarray(table.slot)[0].tolist() == want
    for reference, slot in enumerate(want):
        if slot >= 0:
            image = row[reference][2]
            assert bool(table.valid[0, image, slot])
            assert int(table.index[0, image, slot]) == reference
    assert int(table.valid.sum()) == sum(slot >= 0 for slot in want)


@settings(deadline=None, max_examples=50)
@given(rows)
def test_results_come_back_to_the_reference_that_asked(row: list) -> None:
    table = table_of(row, Unit.BOX)
    hidden = jnp.arange(1.0, 21.0)[None, :, None] * jnp.ones((1, 1, 4))
    place = np.array([[3, 4, 8, 11, 12, 15, 19]])
    queries = gather_queries(hidden, place, table)
    assert queries.shape == (IMAGES, QUERIES, 4)
    assert not np.asarray(queries)[~np.asarray(table.valid)[0]].any()
    back = np.asarray(scatter_back(queries, table))[0, :, 0]
    want = expected_slots(row, Unit.BOX)
    np.testing.assert_array_equal(
        back, [place[0, r] + 1 if s >= 0 else 0 for r, s in enumerate(want)]
    )
