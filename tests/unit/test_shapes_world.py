"""The rendered world: determinism, honest annotations, expressions true of exactly one object."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from data_pipelines.shapes_world import WorldError, generate
from data_pipelines.shapes_world.attributes import COLOURS, HELD_OUT, SEEN, SHAPES

SCENES = {"train": 12, "val": 8, "val_combos": 6}


@pytest.fixture(scope="module", params=[1, 2, 3])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / f"level{request.param}"
    generate(out, level=request.param, scenes=SCENES, seed=4, workers=1, progress=False)
    return out


def load(world: Path, name: str) -> dict | list:
    return json.loads((world / name).read_text())


def lines(world: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (world / name).read_text().splitlines()]


def decoded(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    if isinstance(segmentation, list):
        parts = coco_mask.frPyObjects(segmentation, height, width)
        return coco_mask.decode(coco_mask.merge(parts)).astype(bool)
    return coco_mask.decode(segmentation).astype(bool)


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_one_and_two_workers_write_the_same_bytes(tmp_path: Path) -> None:
    for workers in (1, 2):
        scenes = {"train": 150}  # more than one piece of work
        generate(tmp_path / str(workers), level=1, scenes=scenes, workers=workers, progress=False)
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_an_equal_world_is_kept_and_another_refused(tmp_path: Path) -> None:
    make = lambda seed: generate(  # noqa: E731
        tmp_path / "w", level=1, scenes={"val": 2}, seed=seed, workers=1, progress=False
    )
    first = make(0)
    before = files(tmp_path / "w")
    assert make(0) == first and files(tmp_path / "w") == before
    with pytest.raises(WorldError, match=r"holds another world.*seed is 0, wanted 1"):
        make(1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("mine")
    with pytest.raises(WorldError, match="not empty"):
        generate(tmp_path / "other", level=1, scenes={"val": 1}, progress=False)


def test_boxes_are_tight_and_masks_true(world: Path) -> None:
    content = load(world, "annotations/instances_train.json")
    sizes = {row["id"]: (row["height"], row["width"]) for row in content["images"]}
    assert content["annotations"]
    for row in content["annotations"]:
        mask = decoded(row["segmentation"], *sizes[row["image_id"]])
        x, y, w, h = row["bbox"]
        tight = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))))
        # COCO rasterises a polygon to whole pixels and loses tips thinner than one.
        edges = [*tight[:2], *(tight[:2] + tight[2:])]
        np.testing.assert_allclose(edges, [x, y, x + w, y + h], atol=2.0)
        assert abs(mask.sum() - row["area"]) <= 0.25 * row["area"] + 8


def test_pictures_show_what_the_annotations_say(world: Path) -> None:
    content = load(world, "annotations/instances_train.json")
    names = {row["id"]: row["name"] for row in content["categories"]}
    refs = lines(world, "refs/refs_train.jsonl")
    for row in content["images"]:
        with Image.open(world / "images/train" / row["file_name"]) as picture:
            assert picture.size == (row["width"], row["height"])
        with Image.open(world / "depth/train" / row["file_name"].replace("jpg", "png")) as depth:
            assert depth.size == (row["width"], row["height"]) and depth.mode.startswith("I")
    assert set(names.values()) == {*SHAPES, "person"}
    assert {r["img_path"] for r in refs} <= {row["file_name"] for row in content["images"]}


def _things(world: Path, split: str) -> dict[int, list[dict]]:
    """Objects by image with the colour that the picture shows at their mask."""
    content = load(world, f"annotations/instances_{split}.json")
    names = {row["id"]: row["name"] for row in content["categories"]}
    images = {row["id"]: row for row in content["images"]}
    found: dict[int, list[dict]] = {}
    for row in content["annotations"]:
        image = images[row["image_id"]]
        mask = decoded(row["segmentation"], image["height"], image["width"])
        pixels = np.asarray(Image.open(world / "images" / split / image["file_name"]))[mask]
        x, y, w, h = row["bbox"]
        found.setdefault(row["image_id"], []).append(
            {
                "id": row["id"],
                "shape": names[row["category_id"]],
                "colour": _nearest(np.median(pixels, axis=0)),
                "x": x + w / 2,
                "y": y + h / 2,
            }
        )
    return found


def _nearest(rgb: np.ndarray) -> str:
    return min(COLOURS, key=lambda name: float(np.abs(rgb - np.array(COLOURS[name])).sum()))


@pytest.mark.parametrize("split", ["train", "val", "val_combos"])
def test_plain_expressions_hold_of_exactly_their_object(tmp_path: Path, split: str) -> None:
    """Read back from pixels and boxes alone, at the level where colours are plain."""
    generate(tmp_path / "w", level=1, scenes={split: 25}, workers=1, progress=False)
    things = _things(tmp_path / "w", split)
    checked = 0
    for row in lines(tmp_path / "w", f"refs/refs_{split}.jsonl"):
        holds = _reader(row["expression"], things[row["image_id"]])
        if holds is None:
            continue
        checked += 1
        matching = [t["id"] for t in things[row["image_id"]] if holds(t)]
        assert matching == [row["ann_id"]], row["expression"]
    assert checked > 30


def _reader(text: str, things: list[dict]):
    words = text.removeprefix("the ").split()
    if len(words) == 1:
        return lambda t: t["shape"] == words[0]
    if len(words) == 2 and words[0] in COLOURS:
        return lambda t: (t["colour"], t["shape"]) == tuple(words)
    keys = {
        "leftmost": ("x", 1),
        "rightmost": ("x", -1),
        "topmost": ("y", 1),
        "bottommost": ("y", -1),
    }
    if words[0] in keys:
        axis, sign = keys[words[0]]
        members = [t for t in things if words[1] in ("object", t["shape"])]
        first = min(members, key=lambda t: sign * t[axis])
        return lambda t: t is first
    return None


def test_held_out_pairs_never_occur_in_training(tmp_path: Path) -> None:
    scenes = {"train": 60, "val": 30, "val_combos": 30}
    generate(tmp_path / "w", level=1, scenes=scenes, workers=1, progress=False)
    pairs = {
        split: {
            (t["shape"], t["colour"]) for ts in _things(tmp_path / "w", split).values() for t in ts
        }
        for split in scenes
    }
    assert not (pairs["train"] | pairs["val"]) & HELD_OUT
    assert pairs["val_combos"] & HELD_OUT
    seen = set(SEEN)
    assert {s for s, _ in seen} == set(SHAPES) and {c for _, c in seen} == set(COLOURS)
    for row in _things(tmp_path / "w", "val_combos").values():
        assert any((t["shape"], t["colour"]) in HELD_OUT for t in row)


def test_people_have_joints_inside_the_picture(world: Path) -> None:
    content = load(world, "annotations/person_keypoints_train.json")
    sizes = {row["id"]: (row["width"], row["height"]) for row in content["images"]}
    for row in content["annotations"]:
        points = np.array(row["keypoints"]).reshape(17, 3)
        width, height = sizes[row["image_id"]]
        labelled = points[points[:, 2] > 0]
        assert len(labelled) == row["num_keypoints"]
        assert ((labelled[:, :2] >= 0) & (labelled[:, :2] < (width, height))).all()
        assert (points[points[:, 2] == 0] == 0).all()


def test_drawn_prompts_lie_in_their_object(world: Path) -> None:
    for item in load(world, "interactive/coco_interactive_train.json"):
        for row in item["anns"]:
            mask = coco_mask.decode(row["mask_visual_prompt_mask"]).astype(bool)
            for kind in ("point", "scribble"):
                drawn = coco_mask.decode(row[f"{kind}_visual_prompt_mask"]).astype(bool)
                assert drawn.any() and not (drawn & ~mask).any(), kind
            box = coco_mask.decode(row["box_visual_prompt_mask"]).astype(bool)
            assert not (mask & ~box).any()


def test_yes_and_no_are_balanced(tmp_path: Path) -> None:
    generate(tmp_path / "w", level=1, scenes={"train": 200}, workers=1, progress=False)
    answers = [
        row["annotation"]["multiple_choice_answer"]
        for row in lines(tmp_path / "w", "vqa/vqa_train.jsonl")
        if row["annotation"]["answer_type"] == "yes/no"
    ]
    assert 0.4 < answers.count("yes") / len(answers) < 0.6


def test_grounded_captions_mark_their_phrases(world: Path) -> None:
    for row in load(world, "gcg/open_psg_train.json"):
        for phrase, found in row["groundings"].items():
            start, end = found["token_positives"]
            assert row["caption"][start:end] == phrase and found["rle_masks"]
    for row in lines(world, "gcg/flickr_boxes_train.jsonl"):
        assert row["sentence"].count("<ph_st>") == len(row["boxes_seq"])
        assert sorted(k for group in row["boxes_seq"] for k in group) == list(
            range(len(row["boxes"]))
        )
