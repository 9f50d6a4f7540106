"""Damaged, hostile and odd files: one clear error, and nothing half-written."""

import json
import pickle
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from refvlm_jax.ckpt.convert.files import OneBehind, fresh
from refvlm_jax.ckpt.convert.import_ import import_weights
from refvlm_jax.ckpt.convert.reader import open_source
from refvlm_jax.ckpt.convert.safetensors_io import open_safetensors, write_safetensors
from refvlm_jax.ckpt.convert.tensors import ConvertError


def written(header: dict | bytes, body: bytes = b"\0" * 16) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(**fields) -> dict:
    return {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **fields}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        written(b"not json"),
        written(b"[1, 2]"),
        written(b"[" * 5000),
        written(entry(data_offsets=[0, 64])),
        written(entry(data_offsets=[8, 16])),
        written(entry(data_offsets=[-16, 0])),
        written(entry(dtype="C64")),
        written(entry(shape=[2**62, 2**62])),
        written(entry(shape="4")),
        written({**entry(), "y": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}),
        written({"x": 3}),
        written(entry())[:-4],
    ],
)
def test_broken_safetensors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "projector.safetensors"
    path.write_bytes(content)
    with pytest.raises(ConvertError, match=r"projector\.safetensors"):
        open_safetensors(path)
    with pytest.raises(ConvertError, match=r"projector\.safetensors"):
        import_weights([path], tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["projector.safetensors"]


def test_a_file_that_shrinks_after_its_header_was_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_safetensors(path, [("projector.model.0.weight", np.ones((64, 64), np.float32))])
    ref = open_safetensors(path).tensors["projector.model.0.weight"]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConvertError, match="ends 100 bytes early"):
        ref.read()


class Payload:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_pickles_never_run(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path, mark = tmp_path / "w.pth", tmp_path / "mark"
    for write in (
        lambda: torch.save({"llm.x": torch.ones(2), "bad": Payload(mark)}, path),
        lambda: path.write_bytes(pickle.dumps(Payload(mark))),
        lambda: path.write_bytes(b"PK\x03\x04 truncated"),
    ):
        write()
        with pytest.raises(ConvertError, match=r"w\.pth"):
            import_weights([path], tmp_path / "out")
        assert not mark.exists() and not (tmp_path / "out").exists()
    torch.save({"epoch": 3}, path)
    with pytest.raises(ConvertError, match="holds no tensors"):
        open_source(path)


def test_an_index_that_points_elsewhere_or_lies(tmp_path: Path) -> None:
    weights = [("model.0.weight", np.ones((2, 2), np.float32))]
    write_safetensors(tmp_path / "a.safetensors", weights)
    (tmp_path / "config.json").write_text('{"model_type": "projector"}')
    index = tmp_path / "model.safetensors.index.json"
    for places, problem in (
        ({"model.0.weight": "../a.safetensors"}, "outside its folder"),
        ({"model.0.weight": "b.safetensors"}, r"b\.safetensors is missing"),
        ({"model.9.weight": "a.safetensors"}, r"lacks model\.9\.weight"),
    ):
        index.write_text(json.dumps({"weight_map": places}))
        with pytest.raises(ConvertError, match=problem):
            open_source(tmp_path)
    index.write_text("{")
    with pytest.raises(ConvertError, match="cannot be read as JSON"):
        open_source(tmp_path)


def test_unknown_kinds_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="does not exist"):
        open_source(tmp_path / "nothing")
    (tmp_path / "x.onnx").write_bytes(b"")
    with pytest.raises(ConvertError, match="no known kind"):
        open_source(tmp_path / "x.onnx")
    with pytest.raises(ConvertError, match="holds no weights"):
        open_source(tmp_path)
    write_safetensors(tmp_path / "a.safetensors", [("x", np.ones(1))])
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConvertError, match="'bert' is not supported"):
        open_source(tmp_path)


def test_results_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with pytest.raises(RuntimeError), fresh(out) as partial:
        partial.mkdir()
        (partial / "half").touch()
        raise RuntimeError
    assert list(out.parent.iterdir()) == []
    with fresh(out) as partial:
        partial.mkdir()
        (partial / "whole").touch()
    assert [p.name for p in out.iterdir()] == ["whole"]
    with pytest.raises(ConvertError, match="exists already"), fresh(out):
        pass


def test_one_write_behind() -> None:
    def write(error: Exception | None = None) -> Future:
        started.append(len(started))
        future: Future = Future()
        if error:
            future.set_exception(error)
        else:
            future.set_result(None)
        return future

    started: list[int] = []
    full = OSError("the disk is full")
    with pytest.raises(OSError, match="full"), OneBehind() as behind:
        behind.start(write)
        behind.start(write, full)
        behind.start(write)
    assert started == [0, 1]
    with pytest.raises(OSError, match="full"), OneBehind() as behind:
        behind.start(write, full)
    with pytest.raises(ValueError, match="first"), OneBehind() as behind:
        behind.start(write, full)
        raise ValueError("the first error is the one to report")
