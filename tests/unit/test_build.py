"""From native files to shards: counts, kept work, bad pictures dropped aloud; real COCO pictures."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from data_pipelines.build import BuildRecipe, SourceEntry, build, shapes_world_recipe
from data_pipelines.records import Depth, Dialog, MediaRef, Prompt, PromptKind, Region, Span, Turn
from data_pipelines.shapes_world import generate
from data_pipelines.shards import DialogStore, read_manifest
from data_pipelines.sources.base import SourceError
from data_pipelines.tasks import TASKS
from data_pipelines.validate import repair, validate
from refvlm_jax.trp.tokens import Unit

# The others need words or forms that its files do not have.
WORLD = set(TASKS) - {
    "T02", "T04", "T05", "T10", "T11", "T12", "T15", "T16", "X1", "X2", "X3", "X4",
}  # fmt: skip
SAMPLE = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "coco_sample"


@pytest.fixture()
def world(tmp_path: Path) -> Path:
    out = tmp_path / "world"
    generate(out, level=1, scenes={"train": 8}, seed=3, workers=1, progress=False)  # three people
    return out


def picture_of(world: Path, number: int) -> Path:
    return sorted((world / "images/train").iterdir())[number]


def test_a_world_builds_every_task(world: Path, tmp_path: Path) -> None:
    report = build(shapes_world_recipe(world, "train"), tmp_path / "out", progress=False)
    assert set(report.counts) == WORLD and not report.dropped
    store = DialogStore(tmp_path / "out")
    assert len(store) == sum(report.counts.values())
    for index in range(len(store)):
        assert not validate(store[index])
    assert read_manifest(tmp_path / "out", verify=True)["counts"] == report.counts


def test_finished_work_is_kept(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    recipe, out = shapes_world_recipe(world, "train"), tmp_path / "out"
    first = build(recipe, out, progress=False)
    stamps = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    again = build(recipe, out, progress=False)
    assert again.counts == first.counts and "built already" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == stamps
    assert sum(build(recipe, out, limit=2, progress=False).counts.values()) == 20


def test_bad_pictures_are_dropped_with_every_dialogue_about_them(
    world: Path, tmp_path: Path
) -> None:
    missing, truncated = picture_of(world, 1), picture_of(world, 2)
    missing.unlink()
    truncated.write_bytes(truncated.read_bytes()[:200])
    out = tmp_path / "out"
    report = build(shapes_world_recipe(world, "train"), out, progress=False)
    assert set(report.dropped) == {"V02"} and report.dropped["V02"] > 20
    lines = json.loads((out / "build_report.json").read_text())["lines"]
    assert any(missing.name in line for line in lines)
    assert any(truncated.name in line for line in lines)
    store = DialogStore(out)
    paths = {store[k].image.path for k in range(len(store))}  # type: ignore[union-attr]
    assert len(paths) == 6


def test_a_picture_of_another_size_is_dropped(world: Path, tmp_path: Path) -> None:
    path = picture_of(world, 0)
    Image.new("RGB", (33, 44)).save(path)
    report = build(shapes_world_recipe(world, "train"), tmp_path / "out", progress=False)
    assert report.dropped["V02"] > 0


def test_nothing_left_is_an_error_that_shows_why(world: Path, tmp_path: Path) -> None:
    for path in (world / "images/train").iterdir():
        path.unlink()
    with pytest.raises(SourceError, match="no record survived"):
        build(shapes_world_recipe(world, "train"), tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_unknown_family_is_named(world: Path, tmp_path: Path) -> None:
    recipe = replace(shapes_world_recipe(world, "train"), entries=(SourceEntry("cocoo", "x.json"),))
    with pytest.raises(SourceError, match="unknown source family 'cocoo'"):
        build(recipe, tmp_path / "out", progress=False)


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the COCO sample is not here")
def test_real_coco_pictures_with_annotated_people(tmp_path: Path) -> None:
    file = str(SAMPLE / "test_coco.json")
    recipe = BuildRecipe(
        split="val", image_root=str(SAMPLE), folder="", instances=file,
        entries=(SourceEntry("coco_instances", file),),
    )  # fmt: skip
    report = build(recipe, tmp_path / "out", progress=False)
    assert not report.dropped and report.counts["T13"] == report.counts["T14"]
    store = DialogStore(tmp_path / "out")
    people = sum(
        len(store[k].turns[0].spans[0].targets)
        for k in range(len(store))
        if store[k].task_id == "T13"
    )
    assert people == 14


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the COCO sample is not here")
def test_real_coco_poses(tmp_path: Path) -> None:
    file = str(SAMPLE / "test_coco.json")
    recipe = BuildRecipe(
        split="val", image_root=str(SAMPLE), folder="", instances=file,
        entries=(SourceEntry("coco_keypoints", file),),
    )  # fmt: skip
    report = build(recipe, tmp_path / "out", progress=False)
    assert not report.dropped and report.counts["T24"] == 2 * 12
    store = DialogStore(tmp_path / "out")
    everyone = [store[k] for k in range(len(store)) if store[k].task_id == "T23"]
    assert sum(len(d.turns[0].spans[0].targets) for d in everyone) == 12
    # Two people have no labelled joint: scoring must know them.
    assert sum(r.keypoints == [] for d in everyone for r in d.regions) == 2


def test_an_unusable_depth_map_is_dropped(world: Path, tmp_path: Path) -> None:
    maps = sorted((world / "depth/train").iterdir())
    maps[0].unlink()
    with Image.open(maps[1]) as picture:
        size = picture.size
    Image.new("I;16", size).save(maps[1])
    report = build(shapes_world_recipe(world, "train"), tmp_path / "out", progress=False)
    assert report.dropped == {"V09": 2} and report.counts["T25"] == len(maps) - 2


def dialog(**changes: object) -> Dialog:
    turn = Turn(
        task_name="detection", bank="det", answer="dog.",
        spans=[Span(start=0, end=3, unit=Unit.BOX, targets=[0])],
    )  # fmt: skip
    base = Dialog(
        uid="u", source="s", split="train", task_id="T13", turns=[turn],
        image=MediaRef(path="a.jpg", width=60, height=50),
        regions=[Region(box=(1.0, 1.0, 9.0, 9.0))],
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def with_turn(**changes: object) -> Dialog:
    base = dialog()
    return replace(base, turns=[replace(base.turns[0], **changes)])  # type: ignore[arg-type]


INVALID = {
    "V01": dialog(task_id="T99"),
    "V03": with_turn(answer="", spans=[]),
    "V05": dialog(regions=[Region(box=(1.0, 1.0, 99.0, 9.0))]),
    "V08": dialog(regions=[Region(box=(1.0, 1.0, 9.0, 9.0), keypoints=[[5.0, 99.0, 2.0]])]),
    "V09": dialog(regions=[Region(box=(1.0, 1.0, 9.0, 9.0), depth=Depth(scale=0.0, path="d"))]),
    "V10": with_turn(spans=[Span(start=0, end=3, unit=Unit.BOX, targets=[5])]),
    "V13": with_turn(prompts=[Prompt(region=0, kind=PromptKind.MASK)]),
    "V14": with_turn(answer="<REF> dog.", spans=[]),
    "V19": dialog(regions=[Region(box=(1.0, 1.0, 9.0, 9.0), is_crowd=True)]),
}


def test_a_good_record_has_no_finding() -> None:
    assert not validate(dialog())


@pytest.mark.parametrize("code", INVALID)
def test_each_rule_is_found(code: str) -> None:
    assert code in {finding.code for finding in validate(INVALID[code])}


def test_repair_drops_regions_that_nothing_names() -> None:
    extra = [Region(), *dialog().regions, Region(is_crowd=True)]
    base = with_turn(spans=[Span(start=0, end=3, unit=Unit.BOX, targets=[1])])
    fixed = repair(replace(base, regions=extra))
    assert len(fixed.regions) == 2 and fixed.turns[0].spans[0].targets == [0]
