"""The language of the name tables: layouts both ways, and parts that read no more than they need."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refvlm_jax.ckpt.convert import names
from refvlm_jax.ckpt.convert.safetensors_io import open_safetensors, write_safetensors
from refvlm_jax.ckpt.convert.tensors import ConvertError, TensorRef, in_memory, whole

TRANSFORMS = {
    "keep": (names.KEEP, (5, 6)),
    "matrix": (names.MATRIX, (5, 6)),
    "conv": (names.CONV, (4, 3, 2, 5)),
    "conv1x1": (names.CONV1X1, (4, 6, 1, 1)),
    "expand": (names.Expand(), (7,)),
    "heads out": (names.Chain((names.MATRIX, names.Split(1, 3))), (6, 5)),
    "heads in": (names.Chain((names.MATRIX, names.Split(0, 3))), (5, 6)),
    "pad": (names.Chain((names.MATRIX, names.Pad(1, 3))), (5, 6)),
}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(TRANSFORMS)), st.data())
def test_any_part_is_a_part_of_the_whole(name: str, data: st.DataObject) -> None:
    transform, shape = TRANSFORMS[name]
    x = np.random.default_rng(0).integers(0, 1000, shape)
    y = transform.forward(x)
    assert y.shape == transform.shape(shape) and transform.torch_shape(y.shape) == shape
    np.testing.assert_array_equal(transform.inverse(y), x)
    index = []
    for size in y.shape:
        start = data.draw(st.integers(0, size - 1))
        index.append(slice(start, data.draw(st.integers(start + 1, size))))
    part = transform.read(lambda i: x[i], shape, tuple(index))
    np.testing.assert_array_equal(part, y[tuple(index)])


def test_stacked_rows_read_only_the_layers_they_cover() -> None:
    read = []

    def ref(layer: int) -> TensorRef:
        array = np.full((4, 3), layer, np.float32)
        return TensorRef((4, 3), array.dtype, lambda i: read.append(layer) or array[i])

    tensors = {f"l.{k}.weight": ref(k) for k in range(5)}
    (row,) = names.stack("blocks", 5, lambda k: names.linear("fc", f"l.{k}", bias=False))
    assert row.shape(tensors) == (5, 3, 4)
    found = row.read(tensors, (slice(1, 3), slice(0, 2), slice(0, 4)))
    assert read == [1, 2] and found.shape == (2, 2, 4)
    np.testing.assert_array_equal(found[:, 0, 0], [1, 2])
    back = dict(names.split([row], [row.read(tensors, whole((5, 3, 4)))]))
    assert list(back) == list(tensors) and back["l.4.weight"].shape == (4, 3)


def test_layers_that_differ_are_refused() -> None:
    tensors = {"l.0.weight": in_memory(np.zeros((2, 3))), "l.1.weight": in_memory(np.zeros((2, 4)))}
    (row,) = names.stack("b", 2, lambda k: names.linear("fc", f"l.{k}", bias=False))
    with pytest.raises(ConvertError, match=r"l\.1\.weight has shape"):
        row.shape(tensors)
    with pytest.raises(ConvertError, match="head size 4"):
        names.row("x", "l.0.weight", names.Split(1, 4)).shape(tensors)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_safetensors_parts_read_their_byte_ranges(tmp_path_factory, data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3)))
    array = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    path = tmp_path_factory.mktemp("st") / "x.safetensors"
    write_safetensors(path, [("before", np.arange(3)), ("x", array)])
    index = []
    for size in shape:
        start = data.draw(st.integers(0, size - 1))
        index.append(slice(start, data.draw(st.integers(start + 1, size))))
    ref = open_safetensors(path).tensors["x"]
    np.testing.assert_array_equal(ref.read(tuple(index)), array[tuple(index)])


def test_a_cut_of_the_last_axis_does_not_read_whole_rows(tmp_path, monkeypatch) -> None:
    from refvlm_jax.ckpt.convert import safetensors_io

    array = np.random.default_rng(2).standard_normal((64, 8192)).astype(np.float32)
    write_safetensors(tmp_path / "x.safetensors", [("x", array)])
    read = []
    fill = safetensors_io._fill
    monkeypatch.setattr(
        safetensors_io, "_fill", lambda f, s, row, p: (read.append(row.nbytes), fill(f, s, row, p))
    )
    ref = open_safetensors(tmp_path / "x.safetensors").tensors["x"]
    part = ref.read((slice(0, 64), slice(1024, 2048)))
    np.testing.assert_array_equal(part, array[:, 1024:2048])
    assert sum(read) == part.nbytes
    read.clear()
    np.testing.assert_array_equal(ref.read((slice(8, 16), slice(0, 8192))), array[8:16])
    assert read == [8 * 8192 * 4]
