"""GRIT, GranD, panoptic narratives and the GCG sets as published."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_files import FAR, IMAGE, SIZES, SQUARE, draw, packed, phrases, sound, write

from data_pipelines.records import Dialog
from data_pipelines.sources import grit, narratives
from data_pipelines.sources.base import Drops, SourceError

GRIT = {
    "key": "000000042", "width": 60, "height": 50, "caption": "a red kite and a dog",
    "noun_chunks": [[0, 10, 0.0, 0.0, 0.5, 0.5, 0.9], [15, 20, 0.5, 0.5, 1.0, 1.0, 0.8],
                    [15, 20, 0.0, 0.5, 0.25, 1.0, 0.7]],
    "ref_exps": [[2, 10, 0.0, 0.0, 0.5, 0.5, 0.9]],
}  # fmt: skip


def by_task(dialogs: list[Dialog]) -> dict[str, Dialog]:
    return {d.uid.rsplit("/", 1)[1]: d for d in sound(dialogs)}


def test_grit_boxes_are_fractions(tmp_path: Path) -> None:
    write(tmp_path / "00000/000000042.json", GRIT)
    drops = Drops()
    found = by_task(list(grit.grit(tmp_path, "train", "grit", drops)))
    assert not drops.lines and list(found) == ["T01", "T13", "T15", "T19", "T17", "T06"]
    caption = found["T19"]
    assert caption.image and caption.image.path == "grit/00000/000000042.jpg"
    assert caption.turns[0].answer == GRIT["caption"]
    assert phrases(caption) == [("a red kite", [0]), ("a dog", [1, 2])]
    assert caption.regions[1].box == (30, 25, 60, 50)
    assert phrases(found["T13"]) == [("a red kite", [0]), ("a dog", [1, 2])]
    asked = found["T15"]
    assert asked.turns[1].slots == {"expr": "a dog"} and phrases(asked, 1) == [("a dog", [1, 2])]
    assert found["T06"].turns[0].answer == "red kite"


def test_grit_files_that_are_damaged(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no JSON file"):
        list(grit.grit(tmp_path, "train", "", Drops()))
    write(tmp_path / "1.json", "{")
    write(tmp_path / "2.json", GRIT | {"noun_chunks": [[90, 95, 0, 0, 1, 1, 1]]})
    write(tmp_path / "3.json", GRIT | {"noun_chunks": [[0, 5, 0, 0, 7, 1, 1]]})
    drops = Drops()
    assert not list(grit.grit(tmp_path, "train", "", drops))
    assert dict(drops.counts) == {"V01": 1, "V20": 1, "V05": 1}


def grand_object(number: int, label: str, polygons: Any, bbox: list[int], *said: str) -> dict:
    return {
        "id": number, "bbox": bbox, "segmentation": packed(polygons), "labels": [label],
        "attributes": list(said) or None,
    }  # fmt: skip


GRAND = {
    "objects": [
        grand_object(3, "brick_wall", FAR, [40, 20, 50, 40], "a brick wall"),
        grand_object(9, "dog", SQUARE, [10, 10, 30, 30], "a brown dog"),
    ],
    "floating_objects": [grand_object(5, "kite", SQUARE, [10, 10, 30, 30])],
    "short_captions": [{"caption": "A dog by a wall.", "details": [
        {"phrase": "A dog", "tokens_positive": [0, 5], "id": 9},
        {"phrase": "a wall", "tokens_positive": [9, 15], "ids": [3]},
        {"phrase": "nothing", "tokens_positive": None, "id": 3}]}],
    "dense_caption": {"caption": "Two things.", "details": [
        {"phrase": "Two things", "tokens_positive": [0, 10], "ids": [3, 9, 77]}]},
}  # fmt: skip


def test_grand_refers_to_objects_by_id_not_by_place(tmp_path: Path) -> None:
    write(tmp_path / "sa_1.json", {"sa_1.jpg": GRAND})
    drops = Drops()
    dialogs = sound(list(grit.grand(tmp_path, "train", "sam", drops)))
    assert not drops.lines
    tasks = [d.uid.rsplit("/", 1)[1] for d in dialogs]
    assert tasks[:6] == ["T13", "T14", "T15", "T16", "T06", "T07"]
    assert tasks[6:] == ["T01", "T19", "T20", "T02", "T19", "T20"]
    assert phrases(dialogs[1]) == [("brick wall", [0]), ("dog", [1])]
    # The larger object is described first.
    assert [t.answer for t in dialogs[4].turns] == ["a brown dog", "a brick wall"]
    caption = dialogs[8]
    assert phrases(caption) == [("A dog", [0]), ("a wall", [1])]
    assert [r.box for r in caption.regions] == [(10, 10, 30, 30), (40, 20, 50, 40)]
    assert phrases(dialogs[11]) == [("Two things", [0, 1])]
    more = list(grit.grand(tmp_path, "train", "", Drops(), floating=True))
    assert [name for name, _ in phrases(more[0])] == ["brick wall", "dog", "kite"]


def test_grand_phrases_must_stand_where_they_say(tmp_path: Path) -> None:
    bad = GRAND | {"short_captions": [{"caption": "A dog.", "details": [
        {"phrase": "A cat", "tokens_positive": [0, 5], "id": 9}]}]}  # fmt: skip
    write(tmp_path / "sa_1.json", {"sa_1.jpg": bad, "sa_2.jpg": {"objects": []}})
    drops = Drops()
    assert not list(grit.grand(tmp_path, "train", "", drops))
    assert dict(drops.counts) == {"V20": 1, "V02": 1}


def narrative_files(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    ids = np.zeros((50, 60), np.int64)
    ids[10:30, 10:30] = 70000
    coded = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    draw(tmp_path / "panoptic_val2017" / "a.png", coded)
    note = {"image_id": 7, "file_name": "a.png", "segments_info": [{"id": 70000, "category_id": 1}]}
    content = {"images": [IMAGE], "annotations": [note], "categories": [{"id": 1, "name": "dog"}]}
    write(tmp_path / "panoptic_val2017.json", content)
    return write(tmp_path / "png_coco_val2017.json", rows)


def test_narratives_tie_utterances_to_segments(tmp_path: Path) -> None:
    said = [{"utterance": "In the middle ,", "segment_ids": []},
            {"utterance": "a dog", "segment_ids": ["70000"]},
            {"utterance": ".", "segment_ids": []}]  # fmt: skip
    rows = [
        {"image_id": "7", "caption": "In the middle, a dog.", "segments": said},
        {"image_id": "7", "caption": "Grass.", "segments": [{"utterance": "Grass.", "segment_ids": []}]},
        {"image_id": "7", "caption": "x", "segments": [{"utterance": "x", "segment_ids": ["5"]}]},
        {"image_id": "8", "caption": "x", "segments": said},
    ]  # fmt: skip
    drops = Drops()
    path = narrative_files(tmp_path, rows)
    grounded, plain = sound(list(narratives.narratives(path, "val", "val2017", drops)))
    assert grounded.uid == "png/val/0/T20" and plain.uid == "png/val/1/T01"
    assert grounded.turns[0].answer == "In the middle, a dog."
    assert phrases(grounded) == [("a dog", [0])] and grounded.regions[0].category == "dog"
    assert dict(drops.counts) == {"V06": 1, "V02": 1}
    (tmp_path / "panoptic_val2017.json").unlink()
    with pytest.raises(SourceError, match=r"panoptic_val2017\.json: not found"):
        list(narratives.narratives(path, "val", "", Drops()))


def test_flickr_gcg_masks_of_one_phrase_share_its_range(tmp_path: Path) -> None:
    notes = [
        {"id": k, "image_id": 7, "bbox": [10, 10, 20, 20], "area": 400, "sam_mask": packed(shape),
         "tokens_positive": [[0, 8]]}
        for k, shape in enumerate((SQUARE, FAR))
    ]  # fmt: skip
    content = {
        "images": [IMAGE | {"caption": "Two dogs play."}, IMAGE | {"id": 8, "caption": "Nothing."}],
        "annotations": notes,
    }
    drops = Drops()
    path = write(tmp_path / "flickr_mergedGT_GCG_train.json", content)
    (dialog,) = sound(list(narratives.flickr_gcg(path, "train", "flickr", drops)))
    assert phrases(dialog) == [("Two dogs", [0, 1])] and drops.counts["V10"] == 1


def test_refcocog_gcg_finds_its_sentences(tmp_path: Path) -> None:
    refs = [{"sentence": "the brown dog", "segmentation": SQUARE},
            {"sentence": "dog", "segmentation": SQUARE},
            {"sentence": "a cat", "segmentation": FAR},
            {"sentence": "a wall", "segmentation": FAR}]  # fmt: skip
    row = {"img_file_name": "a.jpg", "caption": '"The brown dog by a wall."', "refs": refs}
    path = write(tmp_path / "RefCOCOg_GCG_train.json", [row])
    (dialog,) = sound(list(narratives.refcocog_gcg(path, "train", "", Drops(), SIZES)))
    assert dialog.turns[0].answer == "The brown dog by a wall."
    assert phrases(dialog) == [("The brown dog", [0]), ("a wall", [1])]


def test_gcg_evaluation_labels_are_found_in_turn(tmp_path: Path) -> None:
    captions = [{"image_id": "a", "caption": "A dog and a dog.", "labels": ["a dog", "a dog"]}]
    masks = [{"image_id": "a", "segmentation": packed(s)} for s in (SQUARE, FAR)]
    path = write(tmp_path / "val_gcg_coco_caption_gt.json", {"annotations": captions})
    beside = write(tmp_path / "val_gcg_coco_mask_gt.json", {"annotations": masks})
    (dialog,) = sound(list(narratives.gcg_eval(path, "val", "", Drops(), SIZES)))
    assert phrases(dialog) == [("A dog", [0]), ("a dog", [1])] and dialog.flags == ["eval_only"]
    assert dialog.regions[1].box == (40, 20, 50, 40)
    write(beside, {"annotations": masks[:1]})
    drops = Drops()
    assert not list(narratives.gcg_eval(path, "val", "", drops, SIZES))
    assert dict(drops.counts) == {"V10": 1}
