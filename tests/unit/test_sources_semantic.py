"""ADE20K, Cityscapes, Pascal, COCO-interactive's single file, NoCaps and the class lists."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_files import (
    FAR,
    IMAGE,
    SIZES,
    SQUARE,
    annotation,
    draw,
    packed,
    phrases,
    sound,
    write,
    write_lines,
)
from PIL import Image

from data_pipelines.build import FAMILIES
from data_pipelines.records import PromptKind
from data_pipelines.sources import coco, interactive, link_context, semantic
from data_pipelines.sources.base import Drops, SourceError


def test_ade20k_instances_have_names_for_ids(tmp_path: Path) -> None:
    content = {
        "images": [IMAGE | {"id": "ADE_val_00000001", "file_name": "a.jpg"}],
        "annotations": [annotation(1, image_id="ADE_val_00000001", segmentation=packed(SQUARE))],
        "categories": [{"id": 1, "name": "bed"}],
    }
    path = write(tmp_path / "ade20k_instance_val.json", content)
    _, masks = sound(list(coco.ade20k(path, "val", "images/validation", Drops())))
    assert masks.uid == "ade20k/val/ADE_val_00000001/T14" and phrases(masks) == [("bed", [0])]
    assert masks.provenance == {"image_id": 1, "native_id": "ADE_val_00000001"}


def city(tmp_path: Path, ids: np.ndarray) -> Path:
    name = "ulm_000000_000019_gtFine_instanceIds.png"
    draw(tmp_path / "gtFine/val/ulm" / name, ids)
    return tmp_path / "gtFine"


def test_cityscapes_instances_groups_and_classes(tmp_path: Path) -> None:
    ids = np.full((50, 60), 7, np.uint16)
    ids[10:30, 10:30] = 26001
    ids[20:40, 40:50] = 26002
    ids[:5, :20] = 26
    ids[45:] = 4
    drops = Drops()
    dialogs = sound(list(semantic.cityscapes(city(tmp_path, ids), "val", "leftImg8bit", drops)))
    assert not drops.lines
    assert [d.uid for d in dialogs] == [
        "cityscapes/val/ulm_000000_000019/T14", "cityscapes/val/ulm_000000_000019-7/T16",
        "cityscapes/val/ulm_000000_000019-26/T16",
    ]  # fmt: skip
    things, _, cars = dialogs
    assert things.image and (
        things.image.path == "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png"
    )
    assert phrases(things) == [("car", [1, 2])]
    assert [r.is_crowd for r in things.regions] == [True, False, False]
    assert phrases(cars) == [("car", [0])] and cars.regions[0].box == (0, 0, 50, 40)


def test_cityscapes_folders_and_maps_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no .*instanceIds\.png; give the folder gtFine"):
        list(semantic.cityscapes(tmp_path, "val", "", Drops()))
    drops = Drops()
    root = city(tmp_path, np.zeros((50, 60, 3), np.uint8))
    assert not list(semantic.cityscapes(root, "val", "", drops))
    assert dict(drops.counts) == {"V06": 1} and "not a map of numbers" in drops.lines[0]


def test_pascal_voc_reads_palette_indices(tmp_path: Path) -> None:
    write(tmp_path / "ImageSets/Segmentation/val.txt", "2007_000033\n2007_000042\n")
    labels = np.zeros((50, 60), np.uint8)
    labels[10:30, 10:30] = 12
    labels[10, 10:30] = 255
    path = tmp_path / "SegmentationClass/2007_000033.png"
    path.parent.mkdir()
    with Image.fromarray(labels, "P") as picture:
        picture.putpalette(list(range(256)) * 3)
        picture.save(path)
    drops = Drops()
    (dialog,) = sound(list(semantic.pascal_voc(tmp_path, "val", "JPEGImages", drops)))
    assert dialog.uid == "pascal_voc/val/2007_000033-12/T16" and phrases(dialog) == [("dog", [0])]
    assert dialog.image and dialog.image.path == "JPEGImages/2007_000033.jpg"
    assert dialog.regions[0].box == (10, 11, 30, 30) and drops.counts["V06"] == 1
    with pytest.raises(SourceError, match=r"test\.txt: not found"):
        list(semantic.pascal_voc(tmp_path, "test", "", Drops()))


@pytest.mark.parametrize(
    "text", ["0:background\n3: dining_table\n", "Idx\tRatio\tName\n3\t0.1\tdining_table, board\n"]
)
def test_label_maps_with_a_class_list(tmp_path: Path, text: str) -> None:
    labels = np.zeros((50, 60), np.uint16)
    labels[10:30, 10:30] = 3
    draw(tmp_path / "maps/a.tif", labels)
    names = str(write(tmp_path / "names.txt", text))
    options = {"names": names, "source": "pascal_context459", "ignore": "0"}
    (dialog,) = sound(list(semantic.label_maps(tmp_path / "maps", "val", "", Drops(), **options)))
    assert dialog.uid == "pascal_context459/val/a-3/T16"
    assert phrases(dialog) == [("dining table", [0])]
    write(tmp_path / "names.txt", "what is this")
    with pytest.raises(SourceError, match=r"names\.txt:1: .* is not `id:name`"):
        list(semantic.label_maps(tmp_path / "maps", "val", "", Drops(), **options))
    with pytest.raises(SourceError, match="no PNG or TIFF map"):
        list(semantic.label_maps(tmp_path, "val", "", Drops(), **options))


def test_single_interactive_prompts_come_in_a_fixed_order(tmp_path: Path) -> None:
    drawn = [packed(SQUARE), packed(FAR), packed(SQUARE), packed(SQUARE)]
    item: dict[str, Any] = {
        "image": "a.jpg", "prompt": drawn, "target": packed(SQUARE), "category_name": "teddy_bear",
    }  # fmt: skip
    drops = Drops()
    path = write(tmp_path / "interactive_val_single.json", [item, item | {"prompt": drawn[:2]}])
    dialogs = sound(list(interactive.single(path, "val", "val2017", drops)))
    assert [d.uid.rsplit("-")[-1] for d in dialogs] == ["point", "box", "scribble", "mask"]
    assert dialogs[0].regions[1].point == (45, 30) and dialogs[1].regions[1].box == (10, 10, 30, 30)
    assert dialogs[0].turns[0].prompts[0].kind is PromptKind.POINT
    assert phrases(dialogs[0]) == [("teddy bear", [0])] and dict(drops.counts) == {"V13": 1}
    assert len(list(interactive.single(path, "train", "", Drops()))) == 1


def test_nocaps_keeps_its_domains(tmp_path: Path) -> None:
    content = {
        "images": [IMAGE | {"domain": "out-domain", "open_images_id": "0013"}],
        "annotations": [{"id": k, "image_id": 7, "caption": f"Kite {k}."} for k in range(10)],
    }
    path = write(tmp_path / "nocaps_val_4500_captions.json", content)
    (dialog,) = sound(list(coco.nocaps(path, "val", "nocaps", Drops())))
    assert dialog.uid == "nocaps/val/7/0" and len(dialog.turns[0].references) == 10
    assert dialog.flags == ["eval_only"] and dialog.provenance["domain"] == "out-domain"


def test_class_lists_give_a_question_a_picture(tmp_path: Path) -> None:
    row = {
        "class_id": "1", "class_name": "kit_fox", "samples": ["a.jpg", "a.jpg", "gone.jpg"],
        "neighbors": [["48", "weasel", "train/b.JPEG"]],
    }  # fmt: skip
    drops = Drops()
    path = write_lines(tmp_path / "train900_pairs.jsonl", [row, {"class_id": "2"}])
    first, second = sound(list(link_context.imagenet(path, "train", "", drops, SIZES)))
    assert first.uid == "imagenet_classes/train/1-samples-0/LCL" and first.task_id == "T03"
    assert first.turns[0].answer == "There is kit fox."
    assert first.provenance["neighbors"] == [["48", "weasel", "train/b.JPEG"]]
    assert second.provenance["neighbors"] == [] and dict(drops.counts) == {"V02": 1, "V01": 1}
    row = {
        "class_id": "3",
        "class_name": "x",
        "context_samples": ["a.jpg"],
        "test_samples": ["a.jpg"],
    }
    path = write_lines(tmp_path / "test100_pairs.jsonl", [row])
    found = list(link_context.imagenet(path, "test", "", Drops(), SIZES))
    assert [d.provenance["role"] for d in found] == ["context_samples", "test_samples"]


def test_isekai_rows_keep_their_supports(tmp_path: Path) -> None:
    row = {
        "image_name": "a.jpg", "positive_list": ["p1.jpg"], "negative_list": ["n1.jpg", "n2.jpg"],
        "positive_promt": "icemic", "negative_promt": "ice cream", "label_name": "ice cream",
    }  # fmt: skip
    drops = Drops()
    path = write_lines(tmp_path / "isekai.jsonl", [row, row | {"label_name": "cat"}])
    (dialog,) = sound(list(link_context.isekai(path, "test", "", drops, SIZES)))
    assert dialog.turns[0].references == ["ice cream"] and dialog.flags == ["eval_only"]
    assert dialog.provenance["negative"] == ["n1.jpg", "n2.jpg"] and drops.counts["V01"] == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_file_stops_every_family_in_one_line(tmp_path: Path, family: str) -> None:
    extra: dict[str, dict[str, Any]] = {
        "interactive": {"categories": {}},
        "depth_maps": {"depth_folder": "depth", "scale": 0.001},
        "llava_grounding": {"instances": str(tmp_path / "gone.json")},
        "label_maps": {"names": "", "source": "x"},
    }
    convert = FAMILIES[family]
    accepts = convert.__code__.co_varnames[: convert.__code__.co_argcount]
    options = extra.get(family, {}) | ({"sizes": SIZES} if "sizes" in accepts else {})
    with pytest.raises(SourceError) as error:
        list(convert(tmp_path / "gone.json", "val", "", Drops(), **options))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
