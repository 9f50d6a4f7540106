"""Regions on the training grid: half coverage, survival of thin structures, prompts."""

import numpy as np
import pytest

from data_pipelines.rasterise import prompt_mask, target_mask
from data_pipelines.records import Mask, PromptKind, Region
from refvlm_jax import rle


def mask_of(array):
    return Mask(h=array.shape[0], w=array.shape[1], counts=rle.encode(array))


def blank(width, height):
    return np.zeros((height, width), bool)


def test_own_resolution_is_kept_exactly():
    array = np.random.default_rng(0).random((20, 32)) < 0.5
    result = target_mask(mask_of(array), 32, 20, 32)
    assert result.dtype == np.uint8
    assert (result[6:26] == array).all() and not result[:6].any() and not result[26:].any()


def test_whole_factors_average_blocks():
    array = np.random.default_rng(1).random((48, 64)) < 0.5
    padded = np.zeros((64, 64))
    padded[8:56] = array
    expected = padded.reshape(16, 4, 16, 4).mean((1, 3)) >= 0.5
    assert (target_mask(mask_of(array), 64, 48, 16) == expected).all()


def test_fractional_factors_match_exact_areas():
    array = np.random.default_rng(2).random((9, 13)) < 0.6
    size = 5
    fine = np.repeat(np.repeat(np.pad(array, ((2, 2), (0, 0))), size, 0), size, 1)
    coverage = fine.reshape(size, 13, size, 13).mean((1, 3))
    assert (target_mask(mask_of(array), 13, 9, size) == (coverage >= 0.5)).all()


def test_mask_grid_may_differ_from_the_picture():
    coarse = np.random.default_rng(3).random((10, 16)) < 0.5
    fine = np.repeat(np.repeat(coarse, 3, 0), 3, 1)
    for size in (12, 48):
        expected = target_mask(mask_of(fine), 48, 30, size)
        assert (target_mask(mask_of(coarse), 48, 30, size) == expected).all()


@pytest.mark.parametrize("offset", range(7))
def test_thin_line_survives(offset):
    array = blank(2250, 2250)
    array[1000 + offset : 1003 + offset, 100:2150] = True
    result = target_mask(mask_of(array), 2250, 2250, 336)
    columns = np.flatnonzero(result.any(0))
    assert columns[0] <= 15 and columns[-1] >= 320
    assert result[:, columns[0] : columns[-1] + 1].any(0).all()  # unbroken
    assert result.sum(0).max() <= 2


def test_thin_diagonal_survives_unbroken():
    array = blank(2250, 2250)
    for shift in (-1, 0, 1):
        np.fill_diagonal(array[100:2150, 100 + shift :], True)
    result = target_mask(mask_of(array), 2250, 2250, 336)
    rows = np.flatnonzero(result.any(1))
    assert len(rows) == rows[-1] - rows[0] + 1 > 300


def test_small_blob_survives():
    array = blank(2250, 1500)
    array[700:705, 900:905] = True
    result = target_mask(mask_of(array), 2250, 1500, 336)
    assert 1 <= result.sum() <= 4
    y, x = np.argwhere(result).mean(0)
    assert abs(x - 902.5 / 2250 * 336) < 1.5 and abs(y - (375 + 702.5) / 2250 * 336) < 1.5


def test_empty_target_stays_empty():
    assert not target_mask(mask_of(blank(30, 20)), 30, 20, 8).any()


def test_point_is_a_disc_of_relative_radius():
    region = Region(point=(512.0, 256.0))
    result = prompt_mask(region, PromptKind.POINT, 1024, 512, 1024)
    assert result.sum() == pytest.approx(np.pi * 100, rel=0.03)
    ys, xs = np.nonzero(result)
    assert xs.mean() + 0.5 == pytest.approx(512) and ys.mean() + 0.5 == pytest.approx(512)


@pytest.mark.parametrize("size", [8, 16, 336])
@pytest.mark.parametrize("point", [(0.0, 0.0), (100.0, 60.0), (33.3, 12.1), (100.0, 0.0)])
def test_point_is_never_empty(point, size):
    result = prompt_mask(Region(point=point), PromptKind.POINT, 100, 60, size)
    cell = (
        min(int(point[0] / 100 * size), size - 1),
        min(int((point[1] + 20) / 100 * size), size - 1),
    )
    assert result[cell[1], cell[0]]


def test_point_without_coordinates_lies_inside_the_mask():
    ring = blank(64, 64)
    ring[8:56, 8:56] = True
    ring[16:48, 16:48] = False
    region = Region(mask=mask_of(ring), box=(8.0, 8.0, 56.0, 56.0))
    ys, xs = np.nonzero(prompt_mask(region, PromptKind.POINT, 64, 64, 64))
    assert ring[round(ys.mean()), round(xs.mean())]
    box_only = prompt_mask(Region(box=(8.0, 8.0, 24.0, 40.0)), PromptKind.POINT, 64, 64, 64)
    assert box_only[24, 16]


def test_box_is_filled_and_cut_at_the_picture():
    region = Region(box=(-5.0, 10.0, 30.0, 25.0))
    result = prompt_mask(region, PromptKind.BOX, 60, 40, 60)
    expected = np.zeros((60, 60))
    expected[20:35, 0:30] = 1
    assert (result == expected).all()


@pytest.mark.parametrize("size", [4, 16, 336])
def test_tiny_box_is_never_empty(size):
    region = Region(box=(1000.2, 700.1, 1001.0, 701.3))
    assert prompt_mask(region, PromptKind.BOX, 2250, 1500, size).any()


def test_box_prompt_may_come_from_the_mask():
    array = blank(20, 20)
    array[3:9, 5] = array[3, 5:12] = True
    result = prompt_mask(Region(mask=mask_of(array)), PromptKind.BOX, 40, 40, 40)
    ys, xs = np.nonzero(result)
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (10, 6, 24, 18)
    assert result.sum() == 14 * 12


def test_mask_and_scribble_show_the_mask():
    array = blank(64, 48)
    array[10:30, 20:50] = True
    region = Region(mask=mask_of(array))
    for kind in (PromptKind.MASK, PromptKind.SCRIBBLE):
        assert (prompt_mask(region, kind, 64, 48, 16) == target_mask(region.mask, 64, 48, 16)).all()


@pytest.mark.parametrize("kind", PromptKind)
def test_missing_or_empty_payload_is_named(kind):
    with pytest.raises(ValueError, match="'cup'.*" + kind.name):
        prompt_mask(Region(category="cup"), kind, 64, 48, 16)
    if kind is not PromptKind.BOX:
        with pytest.raises(ValueError, match=kind.name):
            prompt_mask(Region(mask=mask_of(blank(64, 48))), kind, 64, 48, 16)


def test_box_outside_the_picture_is_refused():
    with pytest.raises(ValueError, match="covers no pixel"):
        prompt_mask(Region(box=(70.0, 0.0, 90.0, 9.0)), PromptKind.BOX, 60, 40, 16)


@pytest.mark.parametrize("seed", range(12))
def test_only_cells_that_meet_the_mask_are_summed(seed):
    """A mask anywhere, of any size, also on the border: as area by area over the whole square."""
    rng = np.random.default_rng(seed)
    width, height, size = (int(n) for n in (*rng.integers(3, 40, 2), rng.integers(2, 30)))
    array = blank(width, height)
    x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
    array[y : y + int(rng.integers(1, height + 1)), x : x + int(rng.integers(1, width + 1))] = True
    side = max(width, height)
    padded = np.zeros((side, side))
    top, left = (side - height) // 2, (side - width) // 2
    padded[top : top + height, left : left + width] = array
    fine = np.repeat(np.repeat(padded, size, 0), size, 1)
    coverage = fine.reshape(size, side, size, side).mean((1, 3))
    level = 0.5 if coverage.max() >= 0.5 else coverage.max() / 2
    assert (target_mask(mask_of(array), width, height, size) == (coverage >= level - 1e-9)).all()


def test_all_polygons_of_an_object_count():
    """Two parts and a thin bridge-like third one, from COCO polygons to the grid."""
    parts = [[10, 10, 110, 10, 110, 110, 10, 110], [300, 200, 420, 200, 420, 330, 300, 330],
             [500, 20, 503, 20, 503, 460, 500, 460]]  # fmt: skip
    encoded = rle.from_segmentation(parts, 480, 640)
    result = target_mask(Mask(h=480, w=640, counts=encoded), 640, 480, 336)
    scale = 336 / 640
    for x, y in ((60, 60), (360, 260)):
        assert result[int((y + 80) * scale), int(x * scale)]
    stripe = result[
        int((25 + 80) * scale) : int((455 + 80) * scale), int(499 * scale) : int(505 * scale) + 1
    ]
    assert stripe.any(1).all()
    assert result.sum() == pytest.approx((100 * 100 + 120 * 130 + 3 * 440) * scale**2, rel=0.1)
