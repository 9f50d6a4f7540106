"""Depth maps: the PNG they are stored in, what is refused, and targets on the padded square."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.depths import depth_problem, depth_target, load_depth
from data_pipelines.images import ImageError
from data_pipelines.records import Depth, MediaRef
from refvlm_jax import depth_png

IMAGE = MediaRef(path="a.jpg", width=6, height=4)


def png(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(samples).save(buffer, "PNG")
    return buffer.getvalue()


def millimetres(samples: np.ndarray, **fields) -> Depth:
    return Depth(scale=0.001, data=png(samples.astype(np.uint16)), **fields)


def test_a_map_survives_its_png() -> None:
    values = np.random.default_rng(0).uniform(0.5, 20.0, (4, 6)).astype(np.float32)
    values[1, 2] = np.nan
    data, scale = depth_png.encode(values)
    back = depth_png.decode(data, 6, 4, scale=scale)
    assert np.isnan(back[1, 2]) and np.isfinite(back).sum() == 23
    np.testing.assert_allclose(back, values, atol=20.0 / 65535)


def test_the_nearest_known_value_is_not_unknown() -> None:
    data, scale = depth_png.encode(np.array([[1e-9, 50.0]]))
    assert np.isfinite(depth_png.decode(data, 2, 1, scale=scale)).all()
    data, scale = depth_png.encode(np.full((2, 2), np.nan))
    assert np.isnan(depth_png.decode(data, 2, 2, scale=scale)).all()


def test_scale_offset_and_invalid_are_those_of_the_record(tmp_path: Path) -> None:
    samples = np.arange(24, dtype=np.uint16).reshape(4, 6)
    (tmp_path / "d.png").write_bytes(png(samples))
    depth = Depth(path="d.png", scale=0.5, offset=1.0, invalid=3)
    values = load_depth(depth, IMAGE, tmp_path)
    assert np.isnan(values[0, 3]) and values[0, 0] == 1.0 and values[3, 5] == 12.5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"junk", "not a PNG"),
        (png(np.zeros((4, 6), np.uint8)), "expected one channel of 16 bits"),
        (png(np.zeros((4, 5), np.uint16)), "5 x 4 pixels, the picture has 6 x 4"),
        (png(np.random.default_rng(0).integers(0, 9999, (4, 6)).astype(np.uint16))[:60], "d.png"),
    ],
)
def test_an_unusable_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "d.png").write_bytes(content)
    with pytest.raises(ImageError, match=message):
        load_depth(Depth(path="d.png", scale=1.0), IMAGE, tmp_path)
    with pytest.raises(ImageError, match=r"gone\.png: depth map cannot be read"):
        load_depth(Depth(path="gone.png", scale=1.0), IMAGE, tmp_path)


def test_rule_v09_looks_at_the_pixels(tmp_path: Path) -> None:
    good = np.full((4, 6), 2000)
    assert depth_problem(millimetres(good), IMAGE, tmp_path) is None
    assert "known in 0.00%" in (depth_problem(millimetres(0 * good), IMAGE, tmp_path) or "")
    far = Depth(scale=1.0, data=png(good.astype(np.uint16)))
    assert "check the scale" in (depth_problem(far, IMAGE, tmp_path) or "")
    far.kind = "relative"
    assert depth_problem(far, IMAGE, tmp_path) is None


def test_targets_lie_where_the_picture_lies() -> None:
    values = np.arange(1.0, 25.0).reshape(4, 6).astype(np.float32)
    target = depth_target(values, 6)
    np.testing.assert_array_equal(target[1:5], values)
    assert not target[0].any() and not target[5].any()
    np.testing.assert_array_equal(depth_target(values.T, 6)[:, 1:5], values.T)


def test_shrinking_keeps_edges_and_sparse_points() -> None:
    values = np.full((8, 8), np.nan, np.float32)
    values[:, :4], values[0, 7] = 2.0, 9.0
    target = depth_target(values, 4)
    assert set(np.unique(target[:, :2])) == {2.0}
    assert target[0, 3] == 9.0 and np.count_nonzero(target[:, 2:]) == 1


def test_enlarging_repeats_pixels() -> None:
    target = depth_target(np.array([[1.0, 5.0], [2.0, np.nan]], np.float32), 4)
    np.testing.assert_array_equal(target, [[1, 1, 5, 5], [1, 1, 5, 5], [2, 2, 0, 0], [2, 2, 0, 0]])


def test_relative_targets_are_positive_whatever_their_scale() -> None:
    values = np.array([[-3.0, 0.0], [5.0, np.nan]], np.float32)
    one = depth_target(values, 2, relative=True)
    np.testing.assert_allclose(one, depth_target(7 * values + 4, 2, relative=True), rtol=1e-6)
    assert one[0, 0] == pytest.approx(1 / 16) and one[1, 0] == 1.0 and one[1, 1] == 0.0
    assert one[0, 1] == pytest.approx(1 / 16 + 15 / 16 * 3 / 8)
