import logging
from dataclasses import replace

import numpy as np
import pytest
from tiny_dialogs import SPEC, tokenizer, write_dataset

from data_pipelines.encode import EncodeOptions
from data_pipelines.loader import LoaderConfig, LoaderError, make_loader
from data_pipelines.plan import build_plan
from data_pipelines.shards import DialogStore
from data_pipelines.squares import SquareReader
from refvlm_jax.batch import Batch


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("dataset")
    write_dataset(root)
    return root


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return tokenizer(tmp_path_factory.mktemp("tokenizer"))


def open_loader(root, words, spec=SPEC, **config):
    store = DialogStore(root / "data")
    return make_loader(
        build_plan(store, merge=2, seed=5),
        store,
        words,
        root / "images",
        EncodeOptions(spec=spec),
        LoaderConfig(**{"batch_size": 4, "seed": 5, "threads": 2, **config}),
    )


def take(root, words, count, **config):
    """The first `count` batches, and the loader they came from."""
    loader = open_loader(root, words, **config)
    try:
        return [next(loader) for _ in range(count)], loader
    finally:
        loader.close()


def same(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(x, b.asdict()[name]) for name, x in a.asdict().items())


def concatenate(batches) -> Batch:
    names = batches[0].asdict()
    return Batch.from_dict({n: np.concatenate([b.asdict()[n] for b in batches]) for n in names})


def test_batches_have_the_shapes_of_the_contract(dataset, words):
    (batch,), loader = take(dataset, words, 1)
    for name, (shape, dtype) in SPEC.fields(4).items():
        array = batch.asdict()[name]
        assert array.shape == shape and array.dtype == dtype, name
    assert batch.sample_id.tolist() == [0, 1, 2, 3] and batch.ref_valid.sum() == 8
    assert not loader.drops and not loader.counts
    read = loader.tally()
    assert read.pop("lost/rows") == 0
    tasks = {name: n for name, n in read.items() if name.startswith("task/")}
    assert tasks and sum(tasks.values()) == sum(read.values()) - sum(tasks.values()) >= 4


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_the_stream_does_not_depend_on_threads(dataset, words, threads):
    wanted, _ = take(dataset, words, 6)
    found, _ = take(dataset, words, 6, threads=threads)
    assert all(map(same, wanted, found))
    assert not same(wanted[0], wanted[1])


@pytest.mark.multiprocess
@pytest.mark.parametrize("prompts", [SPEC.prompts, 0])
def test_the_stream_does_not_depend_on_workers(dataset, words, prompts):
    spec = replace(SPEC, prompts=prompts)
    wanted, _ = take(dataset, words, 6, spec=spec)
    found, _ = take(dataset, words, 6, spec=spec, workers=2)
    assert all(map(same, wanted, found))


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_the_stream_does_not_depend_on_hosts(dataset, words, hosts):
    wanted, _ = take(dataset, words, 4)
    parts = [take(dataset, words, 4, process_index=h, process_count=hosts)[0] for h in range(hosts)]
    for step, batch in enumerate(wanted):
        assert same(batch, concatenate([part[step] for part in parts]))


@pytest.mark.parametrize("hosts", [1, 2])
def test_resuming_at_a_step_continues_the_stream(dataset, words, hosts):
    wanted, _ = take(dataset, words, 6)
    for step in (1, 4):
        config = {"start_step": step, "process_count": hosts}
        parts = [take(dataset, words, 2, process_index=h, **config)[0] for h in range(hosts)]
        for k in range(2):
            assert same(wanted[step + k], concatenate([part[k] for part in parts]))


def damaged(tmp_path, name="3.png"):
    """A dataset in which one picture of six is no picture."""
    write_dataset(tmp_path)
    (tmp_path / "images" / name).write_bytes(b"no picture")
    return tmp_path


@pytest.mark.multiprocess
@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_picture_is_replaced_and_reported(tmp_path, dataset, words, workers, caplog):
    root = damaged(tmp_path)
    with caplog.at_level(logging.WARNING):
        found, loader = take(root, words, 6, workers=workers)
    wanted, _ = take(dataset, words, 6)
    again, _ = take(root, words, 6)
    assert all(map(same, found, again))
    (reason,) = loader.drops
    assert "3.png: not a picture" in reason and reason in caplog.text
    changed = [
        row
        for good, bad in zip(wanted, found, strict=True)
        for row, a, b in zip(good.sample_id, good.images, bad.images, strict=True)
        if not np.array_equal(a, b)
    ]
    assert changed and f"row {changed[0]} replaced: " in caplog.text
    assert loader.drops[reason] >= len(changed)
    assert [k for batch in found for k in batch.sample_id] == list(range(24))


def test_replacements_do_not_depend_on_hosts(tmp_path, words):
    root = damaged(tmp_path)
    wanted, _ = take(root, words, 4)
    parts = [take(root, words, 4, process_index=h, process_count=4)[0] for h in range(4)]
    for step, batch in enumerate(wanted):
        assert same(batch, concatenate([part[step] for part in parts]))


def test_a_dataset_without_pictures_stops_with_the_reason(tmp_path, words):
    write_dataset(tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    with pytest.raises(
        LoaderError, match=r"row \d+: none of 16 candidates .*picture cannot be read"
    ):
        take(tmp_path, words, 1)


def test_what_is_cut_off_is_counted(dataset, words):
    spec = replace(SPEC, refs=1)
    (batch,), loader = take(dataset, words, 1, spec=spec)
    assert batch.ref_valid.sum() == 4 and loader.counts == {"turns_dropped": 4}


def test_uneven_batches_are_refused():
    with pytest.raises(LoaderError, match="batch_size 6 cannot be split evenly over 4"):
        LoaderConfig(batch_size=6, process_count=4)


def test_squares_are_kept_within_bounds(dataset):
    store = DialogStore(dataset / "data")
    pictures = [store[k].image for k in range(6)]
    plain = SquareReader(dataset / "images", 8)
    kept = SquareReader(dataset / "images", 8, cache_bytes=2 * 8 * 8 * 3)
    for media in [*pictures, *pictures[::-1], pictures[0], pictures[0]]:
        assert np.array_equal(kept(media), plain(media))
    assert kept(pictures[0]) is kept(pictures[0]) and plain(pictures[0]) is not plain(pictures[0])
    assert not kept(pictures[0]).flags.writeable and len(kept._kept) == 2
