"""Geometry of the padded square: exact round trips, the reference's numbers, mask resizing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.records import Dialog, MediaRef, Region, Span, Turn, decode, encode
from data_pipelines.sources.base import box_xywh, box_xyxy, picture
from refvlm_jax.cli.truths import Question, truth_of
from refvlm_jax.geometry import PaddedSquare, box_area, box_iou, clip_boxes
from refvlm_jax.trp.tokens import Unit

SIZES = [(640, 427), (427, 640), (500, 500), (501, 400)]
BOX = np.array([101.3, 55.7, 330.2, 300.9])


def test_agrees_with_the_reference_up_to_its_rounding():
    square = PaddedSquare(640, 427)
    assert (square.side, square.offset_x, square.offset_y) == (640, 0, 106)
    # The reference rounds to three decimals twice.
    np.testing.assert_allclose(square.boxes_to_model(BOX), [0.337, 0.445, 0.358, 0.383], atol=1e-3)


def test_nothing_is_lost_where_the_reference_loses_iou():
    rounded = np.array([101.12, 56.56, 330.24, 301.68])
    assert box_iou(BOX, rounded)[0, 0] == pytest.approx(0.99238, abs=1e-5)
    square = PaddedSquare(640, 427)
    assert box_iou(BOX, square.boxes_to_pixels(square.boxes_to_model(BOX)))[0, 0] > 1 - 1e-9


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_boxes_and_points_return(width, height):
    square = PaddedSquare(width, height)
    rng = np.random.default_rng(0)
    corners = np.sort(rng.random((50, 2, 2)), axis=1) * [width, height]
    boxes = corners.reshape(50, 4)
    model = square.boxes_to_model(boxes).astype(np.float32)
    assert model.min() >= 0 and model.max() <= 1
    np.testing.assert_allclose(square.boxes_to_pixels(model), boxes, atol=1e-4)
    points = np.concatenate([corners, np.full((50, 2, 1), 2.0)], axis=-1)
    model = square.points_to_model(points)
    np.testing.assert_allclose(square.points_to_pixels(model), points, atol=1e-4)


@st.composite
def pictures(draw):
    """Square, portrait and landscape, with sides that differ by an even or an odd number."""
    side = draw(st.integers(16, 5000))
    other = draw(st.one_of(st.just(side), st.just(side + 1), st.integers(16, 5000)))
    return draw(st.permutations((side, other)))


SHARE = st.floats(0.0, 1.0)


@given(pictures(), st.lists(st.tuples(SHARE, SHARE, SHARE, SHARE), min_size=1, max_size=8))
def test_nothing_moves_by_more_than_a_ten_thousandth_of_the_side(size, shares):
    width, height = size
    square, tolerance = PaddedSquare(width, height), 1e-4 * max(size)
    boxes = np.sort(np.array(shares).reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    boxes *= [width, height, width, height]
    model = square.boxes_to_model(boxes).astype(np.float32)  # as a batch holds them
    assert model.min() >= 0 and model.max() <= 1
    assert np.abs(square.boxes_to_pixels(model) - boxes).max() < tolerance
    points = np.concatenate([boxes[:, :2], np.full((len(boxes), 1), 2.0)], axis=1)
    model = square.points_to_model(points).astype(np.float32)
    assert np.abs(square.points_to_pixels(model) - points).max() < tolerance
    # The pads of both sides differ by a pixel at most, and the picture fills the rest.
    near = np.array([square.offset_x, square.offset_y])
    far = square.side - near - np.array(size)
    assert ((far - near >= 0) & (far - near <= 1)).all() and near.min() == 0


@given(pictures(), st.tuples(SHARE, SHARE, st.floats(0.1, 1.0), st.floats(0.1, 1.0)))
def test_records_keep_every_digit(size, shares):
    width, height = size
    x, y, w, h = np.array(shares) * [width / 2, height / 2, width / 2, height / 2]
    corners = (float(x), float(y), float(x + w), float(y + h))
    image = picture("a.jpg", "", width, height)
    if min(w, h) < 1:  # less than a pixel is refused, not rounded
        return
    assert box_xyxy(corners, image) == corners
    assert box_xywh([x, y, w, h], image) == corners
    span = Span(start=0, end=3, unit=Unit.BOX, targets=[0])
    turn = Turn(task_name="grounding_detection", answer="dog", literal="Where?", spans=[span])
    region = Region(box=corners, keypoints=[[corners[0], corners[1], 2]], point=corners[:2])
    made = Dialog(
        uid="u", source="s", split="val", task_id="T17", turns=[turn], regions=[region],
        image=MediaRef(path="a.jpg", width=width, height=height),
    )  # fmt: skip
    back = decode(encode(made))
    assert back == made
    (found,) = truth_of(Question(back)).triplets[0].instances
    assert found.box == corners and found.keypoints == region.keypoints


def test_padding_offsets_floor():
    assert PaddedSquare(501, 400).offset_y == 50
    assert PaddedSquare(400, 501).offset_x == 50
    assert PaddedSquare(500, 500)._offset.tolist() == [0, 0]


def test_boxes_are_cut_at_the_picture_not_at_the_square():
    square = PaddedSquare(100, 50)
    model = square.boxes_to_model(np.array([-10.0, -20.0, 50.0, 90.0]))
    np.testing.assert_allclose(square.boxes_to_pixels(model), [0, 0, 50, 50])
    np.testing.assert_allclose(square.points_to_model(np.array([120.0, -5.0])), [1.0, 0.25])


def test_predictions_are_not_clipped():
    pixels = PaddedSquare(100, 50).boxes_to_pixels(np.array([0.5, 0.1, 1.2, 0.2]))
    np.testing.assert_allclose(pixels, [-10, -25, 110, -5])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 427), (0, 55, 336, 279)),
        ((427, 640), (55, 0, 279, 336)),
        ((500, 500), (0, 0, 336, 336)),
        ((10000, 16), (0, 167, 336, 168)),
    ],
)
def test_pixel_box(size, expected):
    assert PaddedSquare(*size).pixel_box(336) == expected


def test_empty_pictures_are_refused():
    with pytest.raises(ValueError, match="0 x 5"):
        PaddedSquare(0, 5)


@pytest.mark.parametrize("size", [*SIZES, (20, 9)])
def test_mask_matches_torch_interpolation(size):
    torch = pytest.importorskip("torch")
    square = PaddedSquare(*size)
    logits = np.random.default_rng(0).normal(size=(28, 28)).astype(np.float32)
    full = torch.nn.functional.interpolate(
        torch.from_numpy(logits)[None, None].double(), (square.side,) * 2, mode="bilinear"
    )[0, 0].numpy()
    y, x = square.offset_y, square.offset_x
    crop = full[y : y + square.height, x : x + square.width]
    for threshold in (0.0, -0.405):
        mask = square.mask_to_pixels(logits, threshold)
        assert mask.shape == (size[1], size[0]) and mask.dtype == np.bool_
        differ = mask != (crop > threshold)
        assert np.abs(crop[differ] - threshold).max(initial=0.0) < 1e-9


def test_mask_of_half_the_square():
    logits = np.full((8, 8), -5.0)
    logits[:, 4:] = 5.0
    mask = PaddedSquare(600, 300).mask_to_pixels(logits)
    assert not mask[:, :300].any() and mask[:, 300:].all()


def test_box_algebra():
    boxes = np.array([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0], [5.0, 5.0, 4.0, 6.0]])
    np.testing.assert_allclose(box_area(boxes), [4, 4, 0])
    np.testing.assert_allclose(box_iou(boxes[:1], boxes), [[1, 1 / 7, 0]])
    np.testing.assert_allclose(box_iou(boxes[2:], boxes[2:]), [[0]])
    assert box_iou(np.zeros((0, 4)), boxes).shape == (0, 3)
    np.testing.assert_allclose(clip_boxes(np.array([[-1.0, 2.0, 9.0, 9.0]]), 5, 4), [[0, 2, 5, 4]])
