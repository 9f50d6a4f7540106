"""LVIS, COCO-ReM, COCO panoptic, Visual Genome and Flickr30k Entities as published."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_files import FAR, IMAGE, SQUARE, annotation, draw, packed, phrases, sound, write

from data_pipelines.sources import flickr30k, lvis, panoptic, visual_genome
from data_pipelines.sources.base import Drops, SourceError
from refvlm_jax import rle


def test_lvis_finds_its_pictures_in_both_folders(tmp_path: Path) -> None:
    image = {
        "id": 7, "coco_url": "http://pictures.example/train2017/000000000007.jpg", "width": 60,
        "height": 50, "neg_category_ids": [3], "not_exhaustive_category_ids": [1],
    }  # fmt: skip
    rows = [
        {k: v for k, v in annotation(n, segmentation=s, bbox=b).items() if k != "iscrowd"}
        for n, s, b in ((1, SQUARE, [10, 10, 20, 20]), (2, FAR, [40, 20, 10, 20]))
    ]
    categories = [{"id": 1, "name": "bow_(weapon)", "frequency": "r", "synset": "bow.n.04"}]
    content = {"images": [image], "annotations": rows, "categories": categories}
    drops = Drops()
    path = write(tmp_path / "lvis_v1_val.json", content)
    boxes, masks = sound(list(lvis.lvis(path, "val", "coco", drops)))
    assert not drops.lines and (boxes.task_id, masks.task_id) == ("T13", "T14")
    assert boxes.uid == "lvis/val/7/T13"
    assert boxes.image and boxes.image.path == "coco/train2017/000000000007.jpg"
    assert phrases(masks) == [("bow (weapon)", [0, 1])]
    assert boxes.provenance == {
        "image_id": 7, "neg_category_ids": [3], "not_exhaustive_category_ids": [1],
    }  # fmt: skip


def test_lvis_without_annotations_is_another_file(tmp_path: Path) -> None:
    path = write(tmp_path / "lvis_v1_image_info_test_dev.json", {"images": [], "categories": []})
    with pytest.raises(SourceError, match=r"no \['annotations'\].*another file version"):
        list(lvis.lvis(path, "test", "", Drops()))


def test_coco_rem_names_pictures_by_number(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 7, "width": 60, "height": 50}],
        "annotations": [annotation(1, segmentation=packed(SQUARE))],
        "categories": [{"id": 1, "name": "dog"}],
    }
    path = write(tmp_path / "instances_valrem.json", content)
    boxes, _ = sound(list(lvis.coco_rem(path, "val", "val2017", Drops())))
    assert boxes.uid == "coco_rem/val/7/T13"
    assert boxes.image and boxes.image.path == "val2017/000000000007.jpg"


def panoptic_files(tmp_path: Path, segments: list[dict[str, Any]]) -> Path:
    ids = np.zeros((50, 60), np.int64)
    ids[10:30, 10:30] = 70000
    ids[20:40, 40:50] = 258
    ids[:5] = 3
    coded = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    draw(tmp_path / "panoptic_val2017" / "a.png", coded)
    content = {
        "images": [IMAGE],
        "annotations": [{"image_id": 7, "file_name": "a.png", "segments_info": segments}],
        "categories": [
            {"id": 1, "name": "dog", "isthing": 1},
            {"id": 199, "name": "wall-other-merged", "isthing": 0},
            {"id": 181, "name": "window-blind", "isthing": 0},
        ],
    }
    return write(tmp_path / "panoptic_val2017.json", content)


SEGMENTS = [
    {"id": 70000, "category_id": 1, "iscrowd": 0, "bbox": [10, 10, 20, 20], "area": 400},
    {"id": 258, "category_id": 199, "iscrowd": 0, "bbox": [40, 20, 10, 20], "area": 200},
    {"id": 3, "category_id": 1, "iscrowd": 1, "bbox": [0, 0, 60, 5], "area": 300},
]


def test_panoptic_ids_are_coded_in_three_channels(tmp_path: Path) -> None:
    drops = Drops()
    path = panoptic_files(tmp_path, SEGMENTS)
    (dialog,) = sound(list(panoptic.segments(path, "val", "val2017", drops)))
    assert not drops.lines and dialog.uid == "coco_panoptic/val/7/T14"
    assert phrases(dialog) == [("dog", [0]), ("wall", [1])]
    assert dialog.regions[0].box == (10, 10, 30, 30)
    mask = dialog.regions[1].mask
    assert mask and mask.origin == "labelmap" and rle.area(mask.counts, mask.h, mask.w) == 200
    assert dialog.regions[2].is_crowd and dialog.flags == ["crowd_present"]


def test_panoptic_segments_that_are_not_in_the_map(tmp_path: Path) -> None:
    bad = [*SEGMENTS, SEGMENTS[0] | {"id": 9}, SEGMENTS[0] | {"category_id": 5}]
    drops = Drops()
    path = panoptic_files(tmp_path, bad)
    (dialog,) = panoptic.segments(path, "val", "", drops)
    assert len(dialog.regions) == 3 and dict(drops.counts) == {"V06": 1, "V01": 1}
    assert "image 7, segment 9" in drops.lines[0]


def test_panoptic_maps_that_are_missing_or_of_another_size(tmp_path: Path) -> None:
    path = panoptic_files(tmp_path, SEGMENTS)
    with pytest.raises(SourceError, match=r"gone: no folder of PNG maps"):
        list(panoptic.segments(path, "val", "", Drops(), maps=str(tmp_path / "gone")))
    png = tmp_path / "panoptic_val2017" / "a.png"
    for content, reason in (
        (np.zeros((5, 6, 3), np.uint8), "6 x 5"),
        (np.zeros((50, 60), np.uint8), "not RGB"),
    ):
        draw(png, content)
        drops = Drops()
        assert not list(panoptic.segments(path, "val", "", drops))
        assert drops.counts["V06"] == 1 and reason in drops.lines[0]
    png.unlink()
    drops = Drops()
    assert not list(panoptic.segments(path, "val", "", drops)) and "missing" in drops.lines[0]


def genome(tmp_path: Path, regions: list[dict[str, Any]]) -> Path:
    data = {
        "image_id": 7, "url": "https://pictures.example/VG_100K_2/7.jpg", "width": 60,
        "height": 50, "coco_id": None, "flickr_id": 1,
    }  # fmt: skip
    write(tmp_path / "image_data.json", [data])
    return write(tmp_path / "region_descriptions.json", [{"id": 7, "regions": regions}])


VG = {
    "region_id": 42, "image_id": 7, "phrase": "A red  kite.", "x": 10, "y": 5, "width": 20,
    "height": 10,
}  # fmt: skip


def test_visual_genome_regions_both_ways(tmp_path: Path) -> None:
    bad = [VG | {"region_id": 43, "x": 70}, VG | {"region_id": 44, "image_id": 8},
           VG | {"region_id": 45, "phrase": ""}]  # fmt: skip
    drops = Drops()
    path = genome(tmp_path, [VG, *bad])
    caption, place = sound(list(visual_genome.regions(path, "train", "vg", drops)))
    assert dict(drops.counts) == {"V05": 1, "V02": 1, "V18": 1}
    assert caption.uid == "visual_genome/train/42/T06"
    assert caption.image and caption.image.path == "vg/VG_100K_2/7.jpg"
    assert (caption.turns[0].answer, caption.regions[0].box) == ("A red kite.", (10, 5, 30, 15))
    assert place.turns[0].slots == {"expr": "A red kite"} and phrases(place) == [("target", [0])]
    with pytest.raises(SourceError, match=r"image_data\.json: not found"):
        (tmp_path / "image_data.json").unlink()
        list(visual_genome.regions(path, "train", "vg", Drops()))


XML = """<annotation><filename>12.jpg</filename>
<size><width>60</width><height>50</height><depth>3</depth></size>
<object><name>5</name><name>6</name><bndbox><xmin>11</xmin><ymin>11</ymin><xmax>31</xmax><ymax>31</ymax></bndbox></object>
<object><name>5</name><bndbox><xmin>41</xmin><ymin>21</ymin><xmax>51</xmax><ymax>41</ymax></bndbox></object>
<object><name>9</name><scene>1</scene><nobndbox>0</nobndbox></object>
</annotation>"""
SENTENCES = """[/EN#5/people Two dogs] chase [/EN#6/other a cat 's tail] in [/EN#9/scene a yard] .
Nothing here is marked .
"""


def entities(tmp_path: Path) -> Path:
    write(tmp_path / "Annotations" / "12.xml", XML)
    write(tmp_path / "Sentences" / "12.txt", SENTENCES)
    for split in ("train", "test"):
        write(tmp_path / f"{split}.txt", "12\n")
    return tmp_path


def test_flickr_entities_become_grounded_captions(tmp_path: Path) -> None:
    drops = Drops()
    dialogs = sound(list(flickr30k.entities(entities(tmp_path), "train", "images", drops)))
    assert not drops.lines
    assert [d.uid for d in dialogs] == [
        "flickr30k/train/12/0/T19", "flickr30k/train/12/0/T01", "flickr30k/train/12/1/T01",
    ]  # fmt: skip
    grounded = dialogs[0]
    assert grounded.image and grounded.image.path == "images/12.jpg"
    assert grounded.turns[0].answer == "Two dogs chase a cat's tail in a yard."
    assert phrases(grounded) == [("Two dogs", [0, 1]), ("a cat's tail", [2])]
    assert [r.box for r in grounded.regions] == [
        (10, 10, 30, 30), (40, 20, 50, 40), (10, 10, 30, 30),
    ]  # fmt: skip
    assert dialogs[2].turns[0].answer == "Nothing here is marked."


def test_flickr_evaluation_captions_a_picture_once(tmp_path: Path) -> None:
    dialogs = list(flickr30k.entities(entities(tmp_path), "test", "", Drops()))
    assert [d.task_id for d in dialogs] == ["T19", "T01"]
    assert len(dialogs[1].turns[0].references) == 2


def test_flickr_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    root = entities(tmp_path)
    with pytest.raises(SourceError, match=r"val\.txt: not found"):
        list(flickr30k.entities(root, "val", "", Drops()))
    write(root / "test.txt", "12\n13\n")
    write(root / "Sentences" / "12.txt", "[/EN#5/people Two dogs run .\nA dog .\n")
    drops = Drops()
    (only,) = flickr30k.entities(root, "test", "", drops)
    assert only.turns[0].answer == "A dog." and dict(drops.counts) == {"V01": 2}
    assert "12.txt:1" in drops.lines[0] and "picture 13" in drops.lines[1]
    write(root / "Annotations" / "12.xml", "<annotation>")
    drops = Drops()
    assert not list(flickr30k.entities(root, "test", "", drops)) and "not XML" in drops.lines[0]
