import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tiny_dialogs import dialog, grounding, write_dataset

from data_pipelines import records
from data_pipelines.catalog import load_catalog, scan_catalog
from data_pipelines.shards import (
    MANIFEST,
    DialogStore,
    ShardError,
    ShardWriter,
    read_manifest,
    write_manifest,
)


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path)


def change(path, position, value=None):
    data = bytearray(path.read_bytes())
    data[position] = data[position] ^ 0xFF if value is None else value
    path.write_bytes(data)


def test_shards_are_named_counted_and_read_in_order(dataset):
    names = sorted(path.name for path in dataset.glob("*.array_record"))
    assert names[:2] == ["t13-00000-of-00002.array_record", "t13-00001-of-00002.array_record"]
    shards = read_manifest(dataset, verify=True)["stores"]["t13"]
    assert [shard.records for shard in shards] == [4, 2]
    store = DialogStore(dataset)
    uids = [store[k].uid for k in range(len(store))]
    assert uids == [f"toy/train/{k}/{task}" for task in ("T13", "T17") for k in range(6)]
    assert [records.decode(data).uid for data in store.scan()] == uids


def test_stems_choose_stores(dataset):
    store = DialogStore(dataset, ["t17"])
    assert len(store) == 6 and store[0].uid == "toy/train/0/T17"
    with pytest.raises(ShardError, match=r"no store \['t99'\]; it has \['t13', 't17'\]"):
        DialogStore(dataset, ["t99"])


def test_index_out_of_range(dataset):
    store = DialogStore(dataset)
    for index in (-1, len(store)):
        with pytest.raises(IndexError):
            store[index]


def test_a_store_can_be_pickled_after_use(dataset):
    store = DialogStore(dataset)
    first = store[0]
    assert pickle.loads(pickle.dumps(store))[0] == first


def test_threads_may_read_together(dataset):
    store = DialogStore(dataset)
    wanted = [k % len(store) for k in range(200)]
    with ThreadPoolExecutor(8) as pool:
        uids = list(pool.map(lambda k: store[k].uid, wanted))
    assert uids == [store[k].uid for k in wanted]


def test_no_file_stays_when_writing_fails(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), ShardWriter(tmp_path, "x", 1) as writer:
        writer.write(b"one")
        writer.write(b"two")
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == [] and writer.shards == []


def test_missing_manifest(tmp_path):
    with pytest.raises(ShardError, match=r"manifest\.json: no manifest"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not JSON"),
        ("[]", "expected an object"),
        ('{"schema_version": 99}', "schema_version 99, expected 1"),
        ('{"schema_version": 1}', "damaged"),
        ('{"schema_version": 1, "image_root": "i", "stores": {"a": [{"name": "b"}]}}', "damaged"),
    ],
)
def test_bad_manifest(dataset, text, message):
    (dataset / MANIFEST).write_text(text)
    with pytest.raises(ShardError, match=message):
        read_manifest(dataset)


def test_truncated_and_missing_shard(dataset):
    path = dataset / "t17-00001-of-00002.array_record"
    os.truncate(path, 1000)
    with pytest.raises(ShardError, match=r"t17-00001.* has 1000 bytes, the manifest says"):
        DialogStore(dataset)
    path.unlink()
    with pytest.raises(ShardError, match=r"t17-00001.* shard is missing"):
        DialogStore(dataset)


def test_verify_finds_a_changed_byte(dataset):
    path = dataset / "t13-00000-of-00002.array_record"
    change(path, 5000)
    assert read_manifest(dataset)
    with pytest.raises(ShardError, match=r"t13-00000-of-00002.*sha256"):
        read_manifest(dataset, verify=True)


def test_a_corrupt_record_is_named_and_the_others_are_read(tmp_path):
    noise = np.random.default_rng(0).bytes(4000)  # does not compress, so records are far apart
    with ShardWriter(tmp_path, "s") as writer:
        for k in range(3):
            made = dialog([grounding([("cup", [0])])], uid=str(k), provenance={"noise": noise})
            writer.write(records.encode(made))
    write_manifest(tmp_path, stores={"s": writer.shards}, image_root=".", counts={}, extra={})
    path = tmp_path / writer.shards[0].name
    places = [k for k in range(2000, 20000, 500) if _only_second_breaks(tmp_path, path, k)]
    assert places, "no byte belongs to the second record alone"


def _only_second_breaks(folder, path, position):
    change(path, position)
    try:
        store = DialogStore(folder)
        results = [_uid(store, k) for k in range(3)]
    finally:
        change(path, position)
    second = results[1]
    return results[0] == "0" and results[2] == "2" and f"{path} record 1: " in second


def _uid(store, k):
    try:
        return store[k].uid
    except ShardError as error:
        return str(error)


def test_a_record_that_is_no_dialog_is_named(tmp_path):
    with ShardWriter(tmp_path, "s") as writer:
        writer.write(b"nonsense")
    write_manifest(tmp_path, stores={"s": writer.shards}, image_root=".", counts={}, extra={})
    store = DialogStore(tmp_path)
    with pytest.raises(ShardError, match=r"s-00000-of-00001\.array_record record 0"):
        store[0]
    with pytest.raises(ShardError, match=r"s-00000-of-00001\.array_record record 0"):
        scan_catalog(store)


def test_a_relative_image_root_moves_with_the_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "data").mkdir(parents=True)
    folder = tmp_path / "run" / "data"
    write_manifest(folder, stores={}, image_root="run/images", counts={"n": 1}, extra={"seed": 3})
    (tmp_path / "run").rename(tmp_path / "moved")
    manifest = read_manifest(tmp_path / "moved" / "data")
    assert manifest["image_root"] == str(tmp_path / "moved" / "images")
    assert manifest["counts"] == {"n": 1} and manifest["seed"] == 3


def test_the_catalog_is_kept_and_made_again_when_damaged(dataset):
    store = DialogStore(dataset)
    first = load_catalog(store)
    (kept,) = dataset.glob("catalog-*.npz")
    written = kept.stat().st_mtime_ns
    second = load_catalog(store)
    assert kept.stat().st_mtime_ns == written
    kept.write_bytes(b"damaged")
    third = load_catalog(store)
    for catalog in (first, second, third):
        assert catalog.tasks == ("T13", "T17")
        assert catalog.task.tolist() == [0] * 6 + [1] * 6
        assert catalog.picture[:6].tolist() == catalog.picture[6:].tolist()
        assert len(set(catalog.picture.tolist())) == 6
    assert json.loads((dataset / MANIFEST).read_text())["schema_version"] == 1
