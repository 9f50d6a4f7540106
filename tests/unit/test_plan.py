import hashlib
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_dialogs import write_dataset

from data_pipelines.catalog import Catalog
from data_pipelines.index import Index
from data_pipelines.permute import mix, permuted
from data_pipelines.plan import build_plan, plan_catalog, plan_index
from data_pipelines.shards import DialogStore


def catalog(pictures=50, tasks=("T01", "T13", "T17"), trainable=None):
    """One record a picture and task, task by task."""
    n = pictures * len(tasks)
    return Catalog(
        tasks=tasks,
        task=np.repeat(np.arange(len(tasks)), pictures).astype(np.uint8),
        picture=np.tile(np.arange(pictures) * 977, len(tasks)).astype(np.uint64),
        trainable=np.ones(n, np.bool_) if trainable is None else trainable,
    )


def plan(weights=None, merge=1, seed=0, **options):
    return plan_catalog(catalog(**options), weights=weights or {}, merge=merge, seed=seed)


@given(size=st.integers(1, 300), key=st.integers(0, 2**64))
def test_permuted_is_a_permutation(size, key):
    assert sorted(permuted(k, size, key) for k in range(size)) == list(range(size))


def test_permuted_depends_on_the_key_and_spreads():
    orders = {tuple(permuted(k, 50, key) for k in range(50)) for key in range(40)}
    assert len(orders) == 40
    firsts = Counter(permuted(0, 4, key) for key in range(4000))
    assert all(900 < firsts[k] < 1100 for k in range(4))
    with pytest.raises(IndexError):
        permuted(5, 5, 0)


def test_mix_is_fixed_for_all_machines():
    assert mix(1, 2, 3) == mix(1, 2, 3) != mix(3, 2, 1)
    assert mix() == 0 and mix(0) == 0xE220A8397B1DCDAF  # first output of splitmix64


def test_an_epoch_holds_every_record_once_in_a_new_order():
    made = plan()
    epochs = [[made.rows(150 * e + k)[0] for k in range(150)] for e in range(3)]
    assert all(sorted(epoch) == list(range(150)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != list(range(150))


def test_rows_depend_on_seed_and_index_only():
    made, other = plan(merge=3), plan(merge=3, seed=1)
    rows = [made.rows(k) for k in range(100)]
    assert [made.rows(k) for k in reversed(range(100))] == rows[::-1]
    assert [plan(merge=3).rows(k) for k in range(100)] == rows
    assert [pickle.loads(pickle.dumps(made)).rows(k) for k in range(100)] == rows
    assert [other.rows(k) for k in range(100)] != rows
    assert made.rows(10**14) == made.rows(10**14)


@pytest.mark.parametrize("merge", [2, 3, 5])
def test_merged_rows_show_one_picture_without_repeats(merge):
    made, columns = plan(merge=merge), catalog()
    for index in range(200):
        row = made.rows(index)
        assert len(row) == min(merge, 3) == len(set(row))
        assert len({columns.picture[k] for k in row}) == 1


def test_order_within_a_row_is_random():
    made = plan(merge=3)
    orders = Counter(tuple(k // 50 for k in made.rows(index)) for index in range(1200))
    assert len(orders) == 6 and min(orders.values()) > 120


def test_weights_set_the_shares_of_tasks():
    made = plan({"T01": 1.0, "T17": 3.0})
    counts = Counter(made.rows(k)[0] // 50 for k in range(4096))
    assert counts == {0: 1024, 2: 3072}
    records = Counter(made.rows(k)[0] for k in range(4096))
    assert max(records.values()) - min(v for k, v in records.items() if k >= 100) <= 1 + 3072 % 50


def test_a_tiny_weight_is_not_lost():
    made = plan({"T01": 1e-6, "T17": 1.0})
    assert Counter(made.rows(k)[0] // 50 for k in range(8000))[0] in (1, 2)


def test_companions_follow_the_weights_too():
    made = plan({"T01": 1.0, "T13": 0.0, "T17": 1.0}, merge=3)
    tasks = {k // 50 for index in range(200) for k in made.rows(index)}
    assert tasks == {0, 2}


def test_default_weights_are_record_counts():
    made = plan_catalog(
        Catalog(
            tasks=("T01", "T13"),
            task=np.array([0] * 10 + [1] * 30, np.uint8),
            picture=np.arange(40, dtype=np.uint64),
            trainable=np.ones(40, np.bool_),
        ),
        weights={},
        merge=2,
        seed=0,
    )
    assert Counter(made.rows(k)[0] >= 10 for k in range(400)) == {False: 100, True: 300}


def test_evaluation_records_are_never_sampled():
    trainable = np.arange(150) % 2 == 0
    made = plan(merge=3, trainable=trainable)
    seen = {k for index in range(400) for k in made.rows(index)}
    assert seen == set(range(0, 150, 2))


def test_bad_arguments(caplog):
    with pytest.raises(ValueError, match="merge is 0"):
        plan(merge=0)
    with pytest.raises(ValueError, match="weight of task T17 is -1"):
        plan({"T17": -1.0})
    with pytest.raises(ValueError, match="no dialogue to sample"):
        plan({"T17": 0.0})
    with pytest.raises(ValueError, match="no dialogue to sample"):
        plan({"T25": 1.0})
    assert "T25 has a sampling weight but no record" in caplog.text


def test_a_plan_of_a_dataset(tmp_path):
    store = DialogStore(write_dataset(tmp_path))
    made = build_plan(store, merge=2, seed=3)
    for index in range(12):
        first, second = (store[k] for k in made.rows(index))
        assert first.image == second.image and first.task_id != second.task_id


@pytest.mark.parametrize(
    "weights, merge, digest",
    [
        ({}, 1, "6f988609672ca904"),
        ({}, 4, "26df8074897ba5a9"),
        ({"T01": 1.0, "T17": 3.5}, 1, "c8f7fbb407999758"),
        ({"T01": 1.0, "T17": 3.5}, 5, "e637dcdaaae19388"),
    ],
)
def test_streams_stay_what_they_were(tmp_path, weights, merge, digest):
    """Runs go on with newer code: the order of a seed is part of the format."""
    rng = np.random.default_rng(0)
    columns = Catalog(
        tasks=("T01", "T13", "T17"),
        task=rng.integers(0, 3, 500).astype(np.uint8),
        picture=rng.integers(0, 90, 500).astype(np.uint64) * 977,
        trainable=rng.random(500) < 0.8,
    )
    made = plan_catalog(columns, weights=weights, merge=merge, seed=7)
    rows = [made.rows(k) for k in range(3000)]
    assert hashlib.sha256(repr(rows).encode()).hexdigest()[:16] == digest
    Index.of(columns).save(tmp_path / "index")
    mapped = plan_index(Index.open(tmp_path / "index"), weights=weights, merge=merge, seed=7)
    copied = pickle.loads(pickle.dumps(mapped))
    assert (
        [mapped.rows(k) for k in range(300)] == rows[:300] == [copied.rows(k) for k in range(300)]
    )
    assert isinstance(copied.index.members, np.memmap) and len(pickle.dumps(mapped)) < 5000
