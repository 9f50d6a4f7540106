"""Converters on tiny files in their native formats: exact records, and bad records dropped aloud."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.records import Depth, Dialog, Prompt, PromptKind, Span
from data_pipelines.sources import coco, depth, grounded, interactive, keypoints, refcoco, vqa
from data_pipelines.sources.base import Drops, SourceError
from refvlm_jax import rle
from refvlm_jax.trp.tokens import Unit

SQUARE = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]]
FAR = [[40.0, 20.0, 50.0, 20.0, 50.0, 40.0, 40.0, 40.0]]
IMAGE = {"id": 7, "file_name": "a.jpg", "width": 60, "height": 50}


def annotation(number: int, **changes: Any) -> dict[str, Any]:
    row = {
        "id": number, "image_id": 7, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400,
        "iscrowd": 0, "segmentation": SQUARE,
    }  # fmt: skip
    return row | changes


def write(path: Path, content: Any) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text)
    return path


def instances(tmp_path: Path, annotations: list[dict]) -> tuple[list[Dialog], Drops]:
    categories = [{"id": 1, "name": "traffic_light"}, {"id": 3, "name": "dog"}]
    content = {"images": [IMAGE], "annotations": annotations, "categories": categories}
    drops = Drops()
    path = write(tmp_path / "instances.json", content)
    return list(coco.instances(path, "val", "pics", drops)), drops


def test_instances_are_grouped_by_category_in_order_of_appearance(tmp_path: Path) -> None:
    rows = [
        annotation(1, category_id=3),
        annotation(2, segmentation=FAR, bbox=[40, 20, 10, 20]),
        annotation(3, category_id=3, segmentation=FAR, bbox=[40, 20, 10, 20]),
    ]
    (boxes, masks), drops = instances(tmp_path, rows)
    assert not drops.lines
    assert (boxes.task_id, masks.task_id) == ("T13", "T14")
    assert boxes.image and boxes.image.path == "pics/a.jpg"
    turn = boxes.turns[0]
    assert turn.answer == "dog, traffic light."
    assert turn.spans == [
        Span(start=0, end=3, unit=Unit.BOX, targets=[0, 2]),
        Span(start=5, end=18, unit=Unit.BOX, targets=[1]),
    ]
    assert boxes.regions[1].box == (40, 20, 50, 40)
    assert masks.turns[0].spans[0].unit is Unit.MASK


def test_all_polygons_of_an_object_count(tmp_path: Path) -> None:
    (_, masks), _ = instances(tmp_path, [annotation(1, segmentation=SQUARE + FAR)])
    mask = masks.regions[0].mask
    assert mask and rle.area(mask.counts, mask.h, mask.w) == 400 + 200


def test_crowd_regions_are_kept_but_never_targets(tmp_path: Path) -> None:
    crowd = {"size": [50, 60], "counts": [100, 50, 2850]}
    rows = [annotation(1), annotation(2, iscrowd=1, segmentation=crowd, bbox=[2, 0, 1, 50])]
    (boxes, _), drops = instances(tmp_path, rows)
    assert not drops.lines and boxes.flags == ["crowd_present"]
    assert [r.is_crowd for r in boxes.regions] == [False, True]
    assert [t for s in boxes.turns[0].spans for t in s.targets] == [0]


BAD = {
    "empty polygon": (annotation(9, segmentation=[]), "V06"),
    "short polygon": (annotation(9, segmentation=[[1, 2, 3, 4]]), "V06"),
    "outside": (annotation(9, bbox=[70, 10, 20, 20]), "V05"),
    "not finite": (annotation(9, bbox=[float("nan"), 1, 2, 3]), "V05"),
    "no area": (annotation(9, bbox=[10, 10, 0, 20]), "V05"),
    "unknown category": (annotation(9, category_id=99), "V01"),
    "no segmentation": ({k: v for k, v in annotation(9).items() if k != "segmentation"}, "V01"),
    "mask of another size": (
        annotation(9, segmentation={"size": [5, 5], "counts": [0, 25]}), "V06",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_annotation_is_dropped_with_file_record_and_reason(tmp_path: Path, name: str) -> None:
    bad, code = BAD[name]
    dialogs, drops = instances(tmp_path, [annotation(1), bad])
    assert [len(d.regions) for d in dialogs] == [1, 1]
    assert dict(drops.counts) == {code: 1}
    (line,) = drops.lines
    assert "instances.json, annotation 9" in line and f"[{code}]" in line and "\n" not in line


def test_files_that_are_missing_or_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"gone\.json: not found"):
        list(coco.instances(tmp_path / "gone.json", "val", "", Drops()))
    with pytest.raises(SourceError, match="not JSON"):
        list(coco.instances(write(tmp_path / "x.json", "{"), "val", "", Drops()))
    with pytest.raises(SourceError, match="another file version"):
        list(coco.instances(write(tmp_path / "y.json", {"images": []}), "val", "", Drops()))


def test_captions_share_their_references(tmp_path: Path) -> None:
    texts = ["A dog.", " Two  dogs\nplay. ", ""]
    rows = [{"id": k, "image_id": 7, "caption": text} for k, text in enumerate(texts)]
    path = write(tmp_path / "captions.json", {"images": [IMAGE], "annotations": rows})
    drops = Drops()
    train = list(coco.captions(path, "train", "", drops))
    assert [d.turns[0].answer for d in train] == ["A dog.", "Two dogs play."]
    assert train[0].turns[0].references == ["A dog.", "Two dogs play."]
    assert drops.counts["V03"] == 1
    assert len(list(coco.captions(path, "val", "", Drops()))) == 1


def ref_row(**changes: Any) -> dict[str, Any]:
    row = {
        "img_path": "a.jpg", "expression": "the  dog", "bbox": [10, 10, 30, 30], "mask": SQUARE,
        "height": 50, "width": 60, "image_id": 7,
    }  # fmt: skip
    return row | changes


def test_expressions_give_four_tasks(tmp_path: Path) -> None:
    path = write(tmp_path / "refs.jsonl", json.dumps(ref_row()) + "\n")
    dialogs = {d.task_id: d for d in refcoco.expressions(path, "train", "", Drops())}
    assert set(dialogs) == {"T17", "T18", "T06", "T07"}
    rec = dialogs["T17"].turns[0]
    assert (rec.slots, rec.answer) == ({"expr": "the dog"}, "target.")
    assert rec.spans == [Span(start=0, end=6, unit=Unit.BOX, targets=[0])]
    assert dialogs["T18"].turns[0].spans[0].unit is Unit.MASK
    caption = dialogs["T06"].turns[0]
    assert (caption.answer, caption.prompts[0].kind) == ("the dog", PromptKind.BOX)
    named = refcoco.expressions(path, "train", "", Drops(), phrase="expression")
    assert next(named).turns[0].answer == "the dog."


def test_malformed_lines_are_dropped_with_their_number(tmp_path: Path) -> None:
    lines = [json.dumps(ref_row()), "{broken", "[1]", json.dumps(ref_row(expression=" ")), ""]
    path = write(tmp_path / "refs.jsonl", "\n".join(lines))
    drops = Drops()
    assert len(list(refcoco.expressions(path, "train", "", drops))) == 4
    assert dict(drops.counts) == {"V01": 2, "V18": 1}
    assert [f"refs.jsonl:{n}:" in line for n, line in zip((2, 3, 4), drops.lines, strict=True)]


def test_questions_keep_their_ten_answers(tmp_path: Path) -> None:
    note = {"multiple_choice_answer": "two", "answers": [{"answer": "two"}, {"answer": "2"}]}
    row = {"image_path": "a.jpg", "question": "How  many?", "question_id": 5, "annotation": note}
    path = write(
        tmp_path / "vqa.jsonl", f"{json.dumps(row)}\n{json.dumps(row | {'image_path': 'b'})}"
    )
    drops = Drops()
    (dialog,) = vqa.questions(path, "val", "", drops, {"a.jpg": (60, 50)})
    turn = dialog.turns[0]
    assert (turn.slots, turn.answer) == ({"question": "How many?"}, "The answer is two.")
    assert turn.references == ["two", "2"]
    assert "b is not in the image list" in drops.lines[0]


def drawn_item() -> dict[str, Any]:
    counts = rle.from_segmentation(SQUARE, 50, 60).decode("ascii")
    masks = {
        f"{kind}_visual_prompt_mask": {"size": [50, 60], "counts": counts}
        for kind in ("point", "box", "scribble", "mask")
    }
    info = {"width": 60, "height": 50}
    return {"image": "a.jpg", "image_info": info, "anns": [annotation(4) | masks]}


def test_interactive_shows_each_allowed_prompt_kind(tmp_path: Path) -> None:
    path = write(tmp_path / "inter.json", [drawn_item()])
    dialogs = list(interactive.regions(path, "val", "", Drops(), {1: "dog"}))
    kinds = [(d.task_id, d.turns[0].prompts[0].kind.name) for d in dialogs]
    assert kinds == [
        ("T21", "POINT"), ("T21", "SCRIBBLE"), ("T21", "MASK"),
        ("T22", "POINT"), ("T22", "BOX"), ("T22", "SCRIBBLE"), ("T22", "MASK"),
        ("T08", "POINT"), ("T09", "SCRIBBLE"),
    ]  # fmt: skip
    assert dialogs[0].regions[1].point == (20.0, 20.0)
    assert dialogs[-1].turns[0].answer == "dog"
    train = list(interactive.regions(path, "train", "", Drops(), {1: "dog"}))
    assert len(train) == 4


def test_grounded_captions_keep_their_spans(tmp_path: Path) -> None:
    row = {
        "image_id": "a.jpg", "sentence": "A <ph_st>dog<ph_ed> by <ph_st>two cats<ph_ed>.",
        "boxes": [[1, 1, 9, 9], [10, 10, 20, 20], [30, 30, 40, 40]], "boxes_seq": [[0], [1, 2]],
    }  # fmt: skip
    path = write(tmp_path / "f.jsonl", json.dumps(row))
    (dialog,) = grounded.flickr_boxes(path, "train", "", Drops(), {"a.jpg": (60, 50)})
    turn = dialog.turns[0]
    assert turn.answer == "A dog by two cats."
    assert [(turn.answer[s.start : s.end], s.targets) for s in turn.spans] == [
        ("dog", [0]), ("two cats", [1, 2]),
    ]  # fmt: skip
    bad = row | {"boxes_seq": [[0]]}
    drops = Drops()
    path = write(tmp_path / "g.jsonl", json.dumps(bad))
    assert not list(grounded.flickr_boxes(path, "train", "", drops, {"a.jpg": (60, 50)}))
    assert drops.counts["V10"] == 1


def test_open_psg_checks_its_character_spans(tmp_path: Path) -> None:
    counts = rle.from_segmentation(SQUARE, 50, 60).decode("ascii")
    mask = {"size": [50, 60], "counts": counts}
    good = {"file_name": "a.jpg", "caption": "A dog runs.", "groundings": {
        "dog": {"token_positives": [2, 5], "rle_masks": [mask]}}}  # fmt: skip
    bad = good | {"groundings": {"cat": {"token_positives": [2, 5], "rle_masks": [mask]}}}
    drops = Drops()
    path = write(tmp_path / "psg.json", [good, bad])
    (dialog,) = grounded.open_psg(path, "train", "", drops)
    assert dialog.image and (dialog.image.width, dialog.image.height) == (60, 50)
    assert dialog.regions[0].box == (10, 10, 30, 30)
    assert drops.counts["V20"] == 1 and "psg.json, row 1" in drops.lines[0]


def people(
    tmp_path: Path, annotations: list[dict], split: str = "val"
) -> tuple[list[Dialog], Drops]:
    content = {
        "images": [IMAGE], "annotations": annotations, "categories": [{"id": 1, "name": "person"}]
    }  # fmt: skip
    drops = Drops()
    path = write(tmp_path / "person_keypoints.json", content)
    return list(keypoints.people(path, split, "pics", drops)), drops


JOINTS = [12, 14, 2, 20, 22, 1, 0, 0, 0]


def test_people_are_asked_for_together_and_one_by_one(tmp_path: Path) -> None:
    rows = [
        annotation(1, keypoints=JOINTS),
        annotation(2, keypoints=[0] * 9, segmentation=FAR, bbox=[40, 20, 10, 20]),
        annotation(3, keypoints=[0] * 9, iscrowd=1),
        annotation(
            4, keypoints=[45, 30, 2, 0, 0, 0, 0, 0, 0], segmentation=FAR, bbox=[40, 20, 10, 20]
        ),
    ]
    (everyone, *single), drops = people(tmp_path, rows)
    assert not drops.lines and everyone.task_id == "T23" and everyone.flags == ["crowd_present"]
    turn = everyone.turns[0]
    assert turn.answer == "person." and turn.task_name == "keypoint_detection"
    assert turn.spans == [Span(start=0, end=6, unit=Unit.KEYPOINT, targets=[0, 3])]
    found = [region.keypoints for region in everyone.regions]
    assert found[0] == [[12, 14, 2], [20, 22, 1], [0, 0, 0]] and found[1:3] == [[], None]
    assert [(d.task_id, d.turns[0].prompts[0].kind.name) for d in single] == [
        ("T24", "BOX"), ("T24", "MASK"), ("T24", "BOX"), ("T24", "MASK")
    ]  # fmt: skip
    assert single[0].turns[0].prompts == [Prompt(region=0, kind=PromptKind.BOX)]
    assert single[0].turns[0].task_name == "grounding_keypoints"
    # Training shows each person once.
    (_, *single), _ = people(tmp_path, rows, "train")
    assert len(single) == 2


@pytest.mark.parametrize(
    "joints", [[1, 2], "x", [12, 14, 3], [12, 99, 2], [float("nan"), 1, 2], None]
)
def test_bad_joints_are_dropped_aloud(tmp_path: Path, joints: Any) -> None:
    good = annotation(1, keypoints=JOINTS[:3])
    (everyone, *_), drops = people(tmp_path, [good, annotation(2, keypoints=joints)])
    assert drops.counts == {"V08": 1} and "annotation 2" in drops.lines[0]
    assert everyone.turns[0].spans[0].targets == [0]


def test_a_picture_without_labelled_people_is_not_asked_about(tmp_path: Path) -> None:
    assert people(tmp_path, [annotation(1, keypoints=[0] * 9)]) == ([], Drops())


def test_every_picture_has_a_depth_map_beside_it(tmp_path: Path) -> None:
    path, drops = write(tmp_path / "images.json", {"images": [IMAGE]}), Drops()
    (found,) = depth.depth_maps(path, "val", "pics", drops, depth_folder="deep", scale=0.001)
    assert found.task_id == "T25" and found.regions[0].depth == Depth(
        path="deep/a.png", scale=0.001
    )
    turn = found.turns[0]
    (span,) = turn.spans
    assert turn.answer[span.start : span.end] == "target" and span.unit is Unit.DEPTH
    assert turn.task_name == "depth" and not drops.lines
