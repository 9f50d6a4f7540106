"""A dataset copied for TensorFlow Datasets is read back by it, record for record, without TensorFlow."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_dialogs import dialog, text_turn, write_dataset, write_picture

from data_pipelines.records import Dialog, decode, encode
from data_pipelines.shards import DialogStore, ShardWriter, write_manifest
from data_pipelines.tfds_export import NAME, VERSION, example, features
from refvlm_jax.cli.main import main


def stored(folder: Path) -> list[Dialog]:
    store = DialogStore(folder)
    return [store[k] for k in range(len(store))]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    root = tmp_path_factory.mktemp("tfds")
    train, val = write_dataset(root / "a"), root / "val"
    with ShardWriter(val, "vqa") as writer:
        for k in range(3):
            turns = [text_turn("Ein Becher \u2713", "Was?"), text_turn("two")]
            kept = dialog(turns, uid=f"v{k}", split="val", image=None, regions=[])
            writer.write(encode(kept))
    write_manifest(
        val, stores={"vqa": writer.shards}, image_root=str(root), counts={"T03": 3}, extra={}
    )
    assert main(["data", "export-tfds", str(train), str(val), str(root / "out"), "--pictures"]) == 0
    return train, val, root / "out"


def test_tfds_reads_every_record(exported: tuple[Path, Path, Path]) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")
    train, val, out = exported
    loaded = "tensorflow" in sys.modules
    named = tfds.data_source("vt_instruct", data_dir=out)
    direct = tfds.builder_from_directory(out / NAME / VERSION).as_data_source()
    for source in (named, direct):
        assert set(source) == {"train", "val"}
        assert [decode(row["record"]) for row in source["train"]] == stored(train)
        assert [decode(row["record"]) for row in source["val"]] == stored(val)
    first, other = named["train"][0], stored(train)[0]
    assert first["uid"] == other.uid.encode() and first["task_id"] == other.task_id.encode()
    assert other.image is not None
    assert (first["image_width"], first["image_height"]) == (other.image.width, other.image.height)
    assert first["image"] == (train.parent / "images" / other.image.path).read_bytes()
    row = named["val"][2]
    assert list(row["answers"]) == ["Ein Becher \u2713".encode(), b"two"] and row["image"] == b""
    assert next(iter(row["questions"])) == b"Was?"
    assert ("tensorflow" in sys.modules) == loaded, "reading needs no TensorFlow"


def test_features_are_as_tfds_writes_them() -> None:
    tfds = pytest.importorskip("tensorflow_datasets")
    text, whole = tfds.features.Text(), tfds.features.Scalar(np.int64)
    numbers = {"image_width": whole, "image_height": whole}
    lists = dict.fromkeys(("questions", "answers"), tfds.features.Sequence(tfds.features.Text()))
    wanted = {name: text for name in features()["content"]["features"]} | numbers | lists
    assert features() == tfds.features.FeaturesDict(wanted).to_json()


def test_examples_are_protocol_buffers() -> None:
    pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.proto import tf_example_pb2

    fields = {"a": [b"", b"x" * 300], "n": [0, 127, 128, 1 << 40], "none": []}
    found = tf_example_pb2.Example.FromString(example(fields)).features.feature
    assert list(found["a"].bytes_list.value) == fields["a"]
    assert list(found["n"].int64_list.value) == fields["n"]
    assert found["none"].HasField("bytes_list") and not found["none"].bytes_list.value


def test_shards_are_counted_and_nothing_is_overwritten(
    exported: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train, _, out = exported
    from data_pipelines.tfds_export import export_tfds

    folder = export_tfds([train], tmp_path, records_per_shard=5, progress=False)
    (split,) = json.loads((folder / "dataset_info.json").read_text())["splits"]
    assert split["shardLengths"] == ["5", "5", "2"] and len(list(folder.glob("*-of-00003"))) == 3
    assert main(["data", "export-tfds", str(train), str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    (train.parent / "images" / "3.png").unlink()
    assert main(["data", "export-tfds", str(train), str(tmp_path / "b"), "--pictures"]) == 2
    assert "3.png" in capsys.readouterr().err and not list((tmp_path / "b" / NAME).iterdir())
    write_picture(train.parent / "images", "3.png")
