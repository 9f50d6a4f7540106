"""Length buckets: nothing lost, nothing cut, one length a batch, the same stream for any host."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_pack import WIDE, same, world  # noqa: F401

from data_pipelines.buckets import BucketPlan, homogeneous
from data_pipelines.encode import EncodeOptions
from data_pipelines.loader import LoaderConfig, make_loader
from data_pipelines.pack import row_limits
from data_pipelines.pack_sizes import load_sizes
from data_pipelines.plan import build_plan
from data_pipelines.shards import DialogStore
from refvlm_jax.config.errors import ConfigError
from refvlm_jax.config.resolve import load_config

LENGTHS = (64, 160)
ROWS = 12


def bucketed(world, monkeypatch, window=48):  # noqa: F811
    monkeypatch.setattr("data_pipelines.buckets.WINDOW", window)
    root, words = world
    store, options = DialogStore(root / "data"), EncodeOptions(spec=WIDE)
    plan = build_plan(store, seed=3)
    sizes = load_sizes(store, words, options)
    return BucketPlan(plan, sizes, row_limits(WIDE), LENGTHS, ROWS), store, options


def take(world, monkeypatch, count, **settings):  # noqa: F811
    plan, store, options = bucketed(world, monkeypatch)
    config = LoaderConfig(**{"batch_size": ROWS, "seed": 3, "threads": 2, **settings})
    opened = make_loader(plan, store, world[1], world[0] / "images", options, config)
    try:
        return [next(opened) for _ in range(count)], opened
    finally:
        opened.close()


@given(
    st.lists(st.integers(0, 30), min_size=0, max_size=60),
    st.integers(1, 7),
)
def test_batches_hold_every_item_once_and_none_too_long(tokens, rows):
    tokens = np.array(tokens[: len(tokens) // rows * rows], np.int64)
    batches = homogeneous(tokens, (4, 11, 30), rows)
    assert sorted(k for items, _ in batches for k in items) == list(range(len(tokens)))
    for items, length in batches:
        assert len(items) == rows and tokens[items].max() <= length
        # No shorter length would do.
        assert length == 4 or tokens[items].max() > {11: 4, 30: 11}[length]


def test_items_that_do_not_fill_batches_are_refused():
    with pytest.raises(ValueError, match="5 items"):
        homogeneous(np.arange(5), (9,), 2)
    with pytest.raises(ValueError, match="up to 9"):
        homogeneous(np.array([1, 9]), (4, 8), 2)


def test_a_window_reads_every_item_of_the_plan_once(world, monkeypatch):  # noqa: F811
    plan = bucketed(world, monkeypatch)[0]
    for window in range(3):
        rows = range(window * plan.window, (window + 1) * plan.window)
        found = sorted(item for row in rows for item in plan.items(row))
        assert found == list(rows)
    lengths = {plan.length(row) for row in range(96)}
    assert len(lengths) == 3, lengths
    for first in range(0, 96, ROWS):
        assert len({plan.length(row) for row in range(first, first + ROWS)}) == 1


def test_batches_are_cut_to_their_length_and_nothing_is_lost(world, monkeypatch):  # noqa: F811
    plan = bucketed(world, monkeypatch)[0]
    batches, loader = take(world, monkeypatch, 8)
    assert not loader.drops and not loader.counts
    for step, batch in enumerate(batches):
        length = plan.length(step * ROWS)
        assert batch.tokens.shape == batch.visual_index.shape == (ROWS, length)
        used = (batch.segment_ids > 0).sum(1)
        assert used.max() <= length
    assert len({batch.tokens.shape for batch in batches}) == 3


def test_the_stream_is_the_same_for_any_number_of_hosts(world, monkeypatch):  # noqa: F811
    wanted, _ = take(world, monkeypatch, 5)
    for hosts in (2, 3, 4):
        parts = [
            take(world, monkeypatch, 5, process_index=k, process_count=hosts)[0]
            for k in range(hosts)
        ]
        for step, batch in enumerate(wanted):
            joined = {
                name: np.concatenate([part[step].asdict()[name] for part in parts])
                for name in batch.asdict()
            }
            assert same(batch, replace(batch, **joined))
    later, _ = take(world, monkeypatch, 2, start_step=3)
    assert all(same(a, b) for a, b in zip(wanted[3:], later, strict=True))


def test_a_plan_travels_to_worker_processes(world, monkeypatch):  # noqa: F811
    plan = bucketed(world, monkeypatch)[0]
    again = pickle.loads(pickle.dumps(plan))
    rows = range(0, 96, 5)
    assert [again.items(row) for row in rows] == [plan.items(row) for row in rows]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("data.buckets=(128,64)", "must ascend"),
        ("data.buckets=(64,384)", "stay below data.seq_len = 384"),
        ("data.buckets=(64,)", "data.buckets and data.opening_steps"),
    ],
)
def test_impossible_buckets_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        load_config("configs/shapes_tiny.py", [change])
