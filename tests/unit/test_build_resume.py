"""Builds in several processes, killed builds and what is judged across sources."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipelines import entries
from data_pipelines.build import BuildRecipe, SourceEntry, build, shapes_world_recipe
from data_pipelines.entries import Job, convert_entry, parts_of
from data_pipelines.pictures import Pictures
from data_pipelines.shapes_world import generate
from data_pipelines.shards import DialogStore, ShardError, read_manifest

KILLED = """
import sys
from pathlib import Path
from data_pipelines.build import build, shapes_world_recipe
world, out = map(Path, sys.argv[1:])
build(shapes_world_recipe(world, "train"), out, progress=False, records_per_shard=5)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("worlds") / "world"
    scenes = {"train": 8, "val": 2}
    generate(out, level=1, scenes=scenes, seed=3, workers=1, progress=False)
    return out


def content(folder: Path) -> dict[str, bytes]:
    """Everything a build wrote but the times inside archives."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix != ".npz"}


@pytest.fixture(scope="module")
def wanted(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("wanted") / "out"
    build(shapes_world_recipe(world, "train"), out, progress=False, records_per_shard=5)
    return content(out)


@pytest.mark.multiprocess
def test_workers_change_nothing(world: Path, wanted: dict[str, bytes], tmp_path: Path) -> None:
    recipe = shapes_world_recipe(world, "train")
    build(recipe, tmp_path / "out", workers=2, progress=False, records_per_shard=5)
    assert content(tmp_path / "out") == wanted and len(wanted) > 20


@pytest.mark.multiprocess
def test_a_killed_build_goes_on(world: Path, wanted: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(world), str(out)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    deadline = time.monotonic() + 60
    while len(kept := list(out.glob(".build/*/0*.json"))) < 6 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.json").exists()
    stamps = {p: p.with_suffix(".array_record").stat().st_mtime_ns for p in kept[:4]}
    before = {p.with_suffix(".array_record").stat().st_ino for p in stamps}
    build(shapes_world_recipe(world, "train"), out, progress=False, records_per_shard=5)
    assert content(out) == wanted and not (out / ".build").exists()
    assert before <= {p.stat().st_ino for p in out.iterdir()}  # finished shards were kept


def job_of(world: Path, folder: Path, family: str = "vqa") -> Job:
    recipe = shapes_world_recipe(world, "train")
    number = [e.family for e in recipe.entries].index(family)
    return Job(recipe, number, folder, None, 5)


def convert(world: Path, folder: Path) -> list[entries.Part]:
    convert_entry(job_of(world, folder), Pictures(world), frozenset(), lambda *_: None)
    return parts_of(folder)


@pytest.mark.parametrize("lost", ["00001.json", "00001.npy", "00001.array_record", "entry.json"])
def test_lost_and_damaged_work_is_done_again(world: Path, tmp_path: Path, lost: str) -> None:
    first = convert(world, tmp_path / "e")
    assert len(first) > 3 and convert(world, tmp_path / "e") == first
    path = tmp_path / "e" / lost
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    kept = (tmp_path / "e/00000.array_record").stat().st_mtime_ns
    assert lost == "entry.json" or len(parts_of(tmp_path / "e")) == 1
    assert convert(world, tmp_path / "e") == first
    assert (tmp_path / "e/00000.array_record").stat().st_mtime_ns == kept


def test_other_files_start_again(world: Path, tmp_path: Path) -> None:
    out, recipe = tmp_path / "out", shapes_world_recipe(world, "train")
    missing = replace(recipe, entries=(*recipe.entries[:2], SourceEntry("vqa", "no.jsonl")))
    with pytest.raises(ValueError, match=r"no\.jsonl: not found"):
        build(missing, out, progress=False)
    assert (out / ".build/000-coco_instances/entry.json").is_file()
    build(replace(recipe, entries=recipe.entries[1:2]), out, progress=False)
    assert list(read_manifest(out, verify=True)["stores"]) == ["dialog-coco_captions"]


def test_an_uid_of_two_entries_is_kept_once(world: Path, tmp_path: Path) -> None:
    recipe = shapes_world_recipe(world, "train")
    (vqa,) = (entry for entry in recipe.entries if entry.family == "vqa")
    half = tmp_path / "half.jsonl"
    lines = Path(vqa.file).read_text().splitlines()
    half.write_text("\n".join(lines[: len(lines) // 2]))
    twice = replace(recipe, entries=(replace(vqa, file=str(half)), vqa))
    report = build(twice, tmp_path / "out", progress=False, records_per_shard=5)
    once = build(replace(recipe, entries=(vqa,)), tmp_path / "one", progress=False)
    assert report.counts == once.counts and report.dropped == {"V01": len(lines) // 2}
    stores = read_manifest(tmp_path / "out", verify=True)["stores"]
    assert {s: sum(k.records for k in v) for s, v in stores.items()} == {
        "dialog-vqa": len(lines) // 2,
        "dialog-vqa-2": len(lines) - len(lines) // 2,
    }
    store = DialogStore(tmp_path / "out")
    assert len({store[k].uid for k in range(len(store))}) == len(store) == len(lines)


def test_evaluation_pictures_are_kept_out(world: Path, tmp_path: Path) -> None:
    held = shapes_world_recipe(world, "val")
    questions = next(e for e in held.entries if e.family == "vqa")
    build(replace(held, entries=(questions,)), tmp_path / "val", progress=False)
    leaked = replace(shapes_world_recipe(world, "val"), against=(str(tmp_path / "val"),))
    report = build(leaked, tmp_path / "leaked", progress=False)
    # Questions of the kind that is evaluated on are gone, detection on the same pictures stays.
    assert report.dropped["V24"] > 4 and "T03" not in report.counts and "T13" in report.counts
    assert report.overlap == [{"dataset": "val", "pictures": 2, "kept_here_too": 2}]
    apart = replace(shapes_world_recipe(world, "train"), against=(str(tmp_path / "val"),))
    report = build(apart, tmp_path / "apart", progress=False)
    assert not report.dropped and report.overlap[0]["kept_here_too"] == 0
    with pytest.raises(ShardError, match=r"pictures\.npz: cannot be read"):
        build(replace(apart, against=(str(world),)), tmp_path / "x", progress=False)


def test_the_report_counts_sources_units_and_duplicates(world: Path, tmp_path: Path) -> None:
    recipe = shapes_world_recipe(world, "train")
    captions = recipe.entries[1]
    native = json.loads(Path(captions.file).read_text())
    again = [row | {"id": row["id"] + 10**6} for row in native["annotations"][:3]]
    native["annotations"] += again
    (tmp_path / "captions.json").write_text(json.dumps(native))
    entries_ = (replace(captions, file=str(tmp_path / "captions.json")), recipe.entries[0])
    build(replace(recipe, entries=entries_), tmp_path / "out", progress=False)
    report = json.loads((tmp_path / "out/build_report.json").read_text())
    assert report["flagged"] == {"V23": 3} and report["families"][0]["duplicates"] == 3
    assert report["pictures"] == 8 and report["units"]["box"] == report["units"]["mask"] > 8
    boxes = report["sources"]["coco"]["T13"]
    assert boxes["box"] == report["units"]["box"] and boxes["dialogs"] == report["counts"]["T13"]
    store = DialogStore(tmp_path / "out")
    for task, records in report["samples"].items():
        assert len(records) == 3 and {store[k].task_id for k in records} == {task}


def test_two_recipes_of_one_hash_are_equal(world: Path) -> None:
    recipe = shapes_world_recipe(world, "train")
    assert isinstance(recipe, BuildRecipe)
    assert recipe.hash == shapes_world_recipe(world, "train").hash
    assert recipe.hash != replace(recipe, against=("x",)).hash
