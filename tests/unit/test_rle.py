"""The COCO run-length codec: agreement with pycocotools and refusal of damaged input."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco

from refvlm_jax import rle

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
SAMPLE = SHARED / "data" / "coco_sample" / "test_coco.json"


def random_masks():
    rng = np.random.default_rng(0)
    for _ in range(200):
        h, w = rng.integers(1, 90, 2)
        mask = rng.random((h, w)) < rng.choice([0.0, 0.02, 0.5, 1.0])
        for _ in range(3):
            y, x = rng.integers(0, h), rng.integers(0, w)
            mask[y : y + 30, x : x + 30] = rng.random() < 0.5
        yield mask


def test_codec_round_trip_and_measures():
    for mask in random_masks():
        h, w = mask.shape
        counts = rle.encode(mask)
        assert isinstance(counts, bytes)
        decoded = rle.decode(counts, h, w)
        assert decoded.dtype == np.uint8 and (decoded == mask).all()
        assert rle.area(counts, h, w) == mask.sum()
        flat = mask.T.reshape(-1)
        values = np.arange(len(rle.runs(counts, h, w))) % 2
        assert (np.repeat(values, rle.runs(counts, h, w)) == flat).all()
        ys, xs = np.nonzero(mask)
        box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else None
        assert rle.tight_box(counts, h, w) == box


def test_any_dtype_counts_nonzero_values():
    mask = np.array([[0, 255], [3, 0]], np.int32)
    assert rle.decode(rle.encode(mask), 2, 2).tolist() == [[0, 1], [1, 0]]
    with pytest.raises(ValueError, match="expected"):
        rle.encode(np.zeros((2, 2, 1)))


def test_damaged_strings_are_refused():
    mask = np.zeros((40, 50), bool)
    mask[5:30, 7:40] = True
    counts = rle.encode(mask)
    refused = 0
    for position in range(len(counts)):
        for damaged in (counts[:position], counts[:position] + b"\xff" + counts[position + 1 :]):
            with pytest.raises(ValueError, match="RLE"):
                rle.decode(damaged, 40, 50)
            refused += 1
    assert refused > 20
    with pytest.raises(ValueError, match="another size"):
        rle.decode(counts, 40, 51)
    with pytest.raises(ValueError, match="60 bits"):
        rle.decode(b"o" * 40 + b"0", 40, 50)


def test_polygons_are_united():
    left, right = [1, 1, 5, 1, 5, 9, 1, 9], [10, 1, 15, 1, 15, 9, 10, 9]
    both = rle.from_segmentation([left, right], 12, 20)
    single = [rle.area(rle.from_segmentation([p], 12, 20), 12, 20) for p in (left, right)]
    assert rle.area(both, 12, 20) == sum(single) == 72
    assert rle.tight_box(both, 12, 20) == (1, 1, 15, 9)
    overlap = rle.from_segmentation([left, left], 12, 20)
    assert overlap == rle.from_segmentation([left], 12, 20)


def test_rle_objects():
    mask = np.zeros((6, 5), np.uint8)
    mask[2:4, 1:3] = 1
    counts = rle.encode(mask)
    for value in (counts, counts.decode(), rle.runs(counts, 6, 5).tolist()):
        assert rle.from_segmentation({"size": [6, 5], "counts": value}, 6, 5) == counts


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "no polygon"),
        ([[]], "0 numbers"),
        ([[1, 2, 3, 4]], "4 numbers"),
        ([[1, 2, 3, 4, 5, 6, 7]], "7 numbers"),
        ([[1, 2, 3, 4, 5, float("nan")]], "finite"),
        ([[1, 2, 3, 4, 5, "6"]], "finite"),
        ([[1, 2, 3, 4, 5, 1e9]], "far outside"),
        ([1, 2, 3, 4, 5, 6], "expected a list of numbers"),
        (None, "expected a list of polygons"),
        ("abc", "expected a list of polygons"),
        ({"size": [5, 6], "counts": [30]}, "picture"),
        ({"counts": [30]}, "picture"),
        ({"size": [6, 5], "counts": [10, 10]}, "add up"),
        ({"size": [6, 5], "counts": [40, -10]}, "add up"),
        ({"size": [6, 5], "counts": "~~~"}, "RLE"),
        ({"size": [6, 5], "counts": "é"}, "RLE"),
        ({"size": [6, 5], "counts": None}, "counts are NoneType"),
        ({"size": [6, 5], "counts": ""}, "RLE"),
    ],
)
def test_bad_segmentations_are_named(segmentation, message):
    with pytest.raises(ValueError, match=message):
        rle.from_segmentation(segmentation, 6, 5)


def test_real_annotations_agree_with_pycocotools():
    if not SAMPLE.is_file():
        pytest.skip("no COCO sample beside the repository")
    content = json.loads(SAMPLE.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    checked = 0
    for annotation in content["annotations"][:300]:
        if annotation["image_id"] not in sizes or "segmentation" not in annotation:
            continue
        h, w = sizes[annotation["image_id"]]
        counts = rle.from_segmentation(annotation["segmentation"], h, w)
        official = coco.frPyObjects(annotation["segmentation"], h, w)
        official = coco.merge(official) if isinstance(official, list) else official
        assert counts == official["counts"]
        assert rle.area(counts, h, w) == coco.area(official)
        checked += 1
    assert checked
