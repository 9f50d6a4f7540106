"""Packing: nothing lost, nothing repeated, no limit exceeded, the same stream for any host."""

import logging
import pickle
import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_dialogs import SPEC, dialog, random_dialog, text_turn, tokenizer, write_picture

from data_pipelines import pack_sizes, records, shards
from data_pipelines.catalog import Catalog
from data_pipelines.encode import EncodeOptions
from data_pipelines.join import join_rows, room_of
from data_pipelines.loader import LoaderConfig, RowReport, RowSource, make_loader
from data_pipelines.options import EncodeError
from data_pipelines.pack import PackedPlan, best_fit, pack_plan, row_limits
from data_pipelines.pack_sizes import COLUMNS, KINDS, item_sizes, load_sizes, sizes_path
from data_pipelines.permute import permuted, permuted_many
from data_pipelines.plan import build_plan, plan_catalog
from data_pipelines.records import Turn
from data_pipelines.shards import DialogStore, ShardError
from refvlm_jax.batch import Batch

WIDE = replace(SPEC, seq_len=512, images=4, prompts=8, refs=30, mask_refs=20)
PICTURES = 5


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A data set of dialogues of many lengths, with and without pictures, and a tokenizer."""
    root, rng = tmp_path_factory.mktemp("packed"), random.Random(0)
    (root / "images").mkdir()
    for k in range(PICTURES):
        write_picture(root / "images", f"{k}.png")
    made = []
    for k in range(60):
        uid = f"toy/train/{k}/0"
        if k % 6 == 0:
            turn = text_turn("red " * rng.randint(1, 90))
            made.append(dialog([turn], uid, image=None, regions=[], task_id="T01"))
        elif k % 6 == 1:
            turn = Turn(task_name="vqa", bank="image_cap", answer="a dog " * rng.randint(1, 9))
            made.append(dialog([turn], uid, image=picture(k), task_id="T01"))
        else:
            made.append(replace(random_dialog(rng), uid=uid, image=picture(k)))
    with shards.ShardWriter(root / "data", "toy") as writer:
        for one in made:
            writer.write(records.encode(one))
    shards.write_manifest(
        root / "data", stores={"toy": writer.shards}, image_root=str(root / "images"),
        counts={}, extra={},
    )  # fmt: skip
    return root, tokenizer(root / "tokenizer")


def picture(k):
    return replace(dialog([]).image, path=f"{k % PICTURES}.png")


def setup(world, spec=WIDE, merge=1, window=16, folder=None, weights=None, **options):
    root, words = world
    store, options = DialogStore(root / "data"), EncodeOptions(spec=spec, **options)
    plan = build_plan(store, merge=merge, seed=3, weights=weights)
    sizes = load_sizes(store, words, options)
    return PackedPlan(plan, sizes, row_limits(spec), folder=folder, window=window), store, options


def loader(world, packed, store, options, **config):
    config = LoaderConfig(**{"batch_size": 24, "seed": 3, "threads": 2, **config})
    return make_loader(packed, store, world[1], world[0] / "images", options, config)


def source(world, packed, store, options):
    config = LoaderConfig(batch_size=1)
    return RowSource(packed, store, world[1], world[0] / "images", options, config)


def take(world, count, *, seen=None, **settings):
    names = ("process_index", "process_count", "start_step", "threads", "workers")
    config = {name: settings.pop(name) for name in names if name in settings}
    opened = loader(world, *setup(world, **settings), **config)
    try:
        found = [next(opened) for _ in range(count)]
    finally:
        opened.close()
    if seen is not None:
        seen.append(opened)
    return found


def same(a, b):
    return all(np.array_equal(x, b.asdict()[name]) for name, x in a.asdict().items())


LIMITS = (100, 3, 5)


@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 3), st.integers(0, 5)), max_size=80),
)
def test_best_fit_loses_nothing_and_keeps_every_limit(items):
    sizes = np.array(items, np.int64).reshape(-1, 3)
    rows = best_fit(sizes, LIMITS)
    assert sorted(k for row in rows for k in row) == list(range(len(items)))
    assert all(row and (sizes[row].sum(0) <= LIMITS).all() for row in rows)
    # No two rows could be one: the later would have gone into the earlier.
    for a, b in pairwise(rows):
        assert (sizes[a + b].sum(0) > LIMITS).any()


def test_an_item_that_fits_nowhere_is_an_error():
    with pytest.raises(ValueError, match="exceeds the room of a row in kind 1"):
        best_fit(np.array([[4, 9, 0]]), LIMITS)


@given(size=st.integers(1, 400), key=st.integers(0, 2**64 - 1))
def test_permutations_of_many_are_those_of_one(size, key):
    wanted = [permuted(k, size, key) for k in range(size)]
    assert permuted_many(np.arange(size), size, key).tolist() == wanted


@pytest.mark.parametrize("weights", [{}, {"T01": 1.0, "T17": 3.5}])
def test_a_batch_of_items_is_those_items(weights):
    rng = np.random.default_rng(0)
    columns = Catalog(
        tasks=("T01", "T13", "T17"), task=rng.integers(0, 3, 500).astype(np.uint8),
        picture=np.arange(500).astype(np.uint64), trainable=rng.random(500) < 0.8,
    )  # fmt: skip
    plan = plan_catalog(columns, weights=weights, merge=1, seed=7)
    for start, count in ((0, 900), (4090, 20), (10**12, 5)):
        wanted = [plan.rows(k) for k in range(start, start + count)]
        assert plan.batch(start, count) == wanted


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("merge", [1, 3])
def test_measured_room_is_what_rows_use(world, merge, shared):
    """Nothing of an item is larger than planned, and what is neither cut nor drawn is as planned."""
    packed, store, options = setup(world, merge=merge, shared_picture=shared)
    rows, exact = source(world, packed, store, options), 0
    for item in range(90):
        report = RowReport()
        row = rows._usable(item, report, options)
        assert row is not None, report.drops
        room, used = packed.room(item), room_of(row)
        assert all(have <= most for have, most in zip(used, room, strict=True)), (used, room)
        exact += used == room
    assert exact > 20


def test_an_epoch_holds_every_record_once(world):
    packed, store, _ = setup(world, window=15)
    items, row = [], 0
    while len(items) < len(store):
        items += packed.items(row)
        row += 1
    assert sorted(items) == list(range(len(store)))
    assert sorted(k for item in items for k in packed.rows(item)) == list(range(len(store)))


def test_rows_of_the_stream_keep_all_limits(world):
    packed, _, options = setup(world, merge=2)
    limits = np.array(row_limits(options.spec))
    several = 0
    for row in range(200):
        rooms = np.array([packed.room(item) for item in packed.items(row)])
        assert (rooms.sum(0) <= limits).all()
        several += len(rooms) > 1
    assert several > 100


def test_batches_hold_what_was_planned(world):
    seen = []
    (batch,) = take(world, 1, seen=seen)
    packed, *_ = setup(world)
    counts = [len(packed.items(row)) for row in range(24)]
    assert batch.segment_ids.max(1).tolist() == counts and max(counts) >= 3
    assert (batch.image_valid.sum(1) > 1).any()
    assert not seen[0].drops and set(seen[0].counts) <= {"turns_dropped", "answers_cut"}
    for segments, positions in zip(batch.segment_ids, batch.positions, strict=True):
        for segment in range(1, segments.max() + 1):
            own = positions[segments == segment]
            assert own.tolist() == list(range(len(own)))


@pytest.mark.parametrize("merge, weights", [(1, {"T01": 1.0, "T17": 2.0}), (2, None)])
def test_the_stream_does_not_depend_on_hosts(world, merge, weights):
    wanted = take(world, 2, merge=merge, weights=weights)
    for hosts in (2, 3, 4, 8):
        parts = [
            take(world, 1, merge=merge, weights=weights, process_index=h, process_count=hosts,
                 start_step=1)
            for h in range(hosts)
        ]  # fmt: skip
        names = wanted[1].asdict()
        joined = {n: np.concatenate([p[0].asdict()[n] for p in parts]) for n in names}
        assert same(wanted[1], Batch.from_dict(joined))


def test_access_in_any_order_and_after_pickling(world, tmp_path):
    packed, *_ = setup(world, folder=tmp_path)
    rows = [packed.items(row) for row in range(900)]
    other, *_ = setup(world)
    order = np.random.default_rng(0).permutation(900)
    assert all(other.items(int(row)) == rows[row] for row in order[:100])
    sent = pickle.dumps(packed)
    assert len(sent) < 20_000 and pickle.loads(sent).items(899) == rows[899]


def test_row_counts_are_kept_and_damaged_ones_are_not_used(world, tmp_path, caplog):
    packed, *_ = setup(world, folder=tmp_path)
    rows = [packed.items(row) for row in range(600)]
    (file,) = tmp_path.glob("rows-*.npy")
    again, *_ = setup(world, folder=tmp_path)
    assert again._ends and again._ends == packed._ends[: len(again._ends)]
    assert [again.items(row) for row in range(500, 600)] == rows[500:]
    file.write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        fresh, *_ = setup(world, folder=tmp_path)
    assert "damaged row counts" in caplog.text and fresh.items(599) == rows[599]


def test_sizes_are_kept_by_what_they_depend_on(world):
    _, store, options = setup(world)
    paths = {
        sizes_path(store, world[1], replace(options, **change))
        for change in ({}, {"plan": False}, {"shared_picture": True}, {"templates": 2})
    }
    shorter = replace(options, spec=replace(options.spec, seq_len=64))
    assert len(paths) == 4 and sizes_path(store, world[1], shorter) in paths
    path = sizes_path(store, world[1], options)
    kept = path.read_bytes()
    assert isinstance(load_sizes(store, world[1], options), np.memmap)
    path.write_bytes(kept[:-1])
    with pytest.raises(ShardError, match=r"no usable sizes .*delete the file"):
        load_sizes(store, world[1], options)
    path.unlink()
    load_sizes(store, world[1], options)
    assert path.read_bytes() == kept


@pytest.mark.multiprocess
def test_workers_measure_the_same(world, monkeypatch):
    _, store, options = setup(world)
    monkeypatch.setattr(pack_sizes, "_CHUNK", 20)
    found = pack_sizes._measured(store, world[1], options, 2)
    np.testing.assert_array_equal(found, load_sizes(store, world[1], options))


def test_an_unusable_member_leaves_the_others_in_their_row(world, monkeypatch):
    packed, store, options = setup(world)
    rows = source(world, packed, store, options)
    row = next(k for k in range(50) if len(packed.items(k)) == 3)
    whole, _ = rows.make(row)
    bad, real = packed.items(row)[1], rows._fitted

    def fail(item, counts, options):
        if item == bad:
            raise EncodeError("no good")
        return real(item, counts, options)

    monkeypatch.setattr(rows, "_fitted", fail)
    part, report = rows.make(row)
    assert report.drops == ["no good"] and isinstance(report, RowReport)
    assert whole["segment_ids"].max() == 3 and part["segment_ids"].max() == 2
    assert part["sample_id"] == row
    monkeypatch.setattr(packed, "items", lambda _: [bad])
    alone, report = rows.make(row)
    assert report.drops == ["no good"] and alone["segment_ids"].max() == 1


def test_rows_that_do_not_fit_are_not_joined(world):
    packed, store, options = setup(world)
    rows = source(world, packed, store, options)
    part = rows._usable(0, RowReport(), options)
    with pytest.raises(ValueError, match="pack fewer"):
        join_rows([part] * 40, options.spec)


def stage2_like(count, rng):
    """Sizes of dialogues whose mean is 0.3 of a row of 2048, as in the released second stage.

    A picture of 576 tokens in nine of ten, a preamble and command of about 60, and answers from a
    few words to long descriptions and many references.
    """
    sizes = np.zeros((count, len(COLUMNS)), np.uint16)
    picture = rng.random(count) < 0.9
    text = np.clip(rng.lognormal(4.0, 0.8, count), 8, 1400)
    refs = np.minimum(rng.geometric(0.35, count) - 1, 60) * picture
    masks = np.minimum(refs, 30) * (rng.random(count) < 0.3)
    sizes[:, KINDS.index("tokens")] = np.minimum(576 * picture + 60 + text + 4 * refs, 2048)
    sizes[:, KINDS.index("images")] = picture
    sizes[:, KINDS.index("refs")] = refs
    sizes[:, KINDS.index("masks")] = masks
    sizes[:, -1] = sizes[:, 0]
    return sizes


def test_packing_raises_token_efficiency():
    """Issue 4: from about 0.3 to at least 0.85 of a row's positions."""
    sizes = stage2_like(20_000, np.random.default_rng(0))
    limits = (2048, 4, 16, 100, 1 << 30, 30, 0, 0)
    one_task = Catalog(
        tasks=("T13",), task=np.zeros(20_000, np.uint8), picture=np.arange(20_000, dtype=np.uint64),
        trainable=np.ones(20_000, np.bool_),
    )  # fmt: skip
    plan = plan_catalog(one_task, weights={}, merge=1, seed=0)
    packed = PackedPlan(plan, sizes, limits)
    rows, room = packed.pack_window(0)
    used = room[:, 0].sum()
    assert 0.25 < used / (2048 * len(room)) < 0.36
    assert used / (2048 * len(rows)) >= 0.85
    found = item_sizes(sizes, [plan.rows(k) for k in range(50)], limits)
    assert (found[:, 0] == sizes[[plan.rows(k)[0] for k in range(50)], 0]).all()


def test_pack_plan_of_a_store(world):
    root, words = world
    store = DialogStore(root / "data")
    options = EncodeOptions(spec=WIDE)
    packed = pack_plan(build_plan(store), store, words, options, groups=2)
    rooms = [[packed.room(k) for k in packed.items(row)] for row in range(20)]
    assert all(sum(room[KINDS.index("groups")] for room in row) <= 2 for row in rooms)
    assert Counter(len(row) for row in rooms)[1] < 20
