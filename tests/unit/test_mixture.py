"""Mixtures by source and task over several datasets."""

import json
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_dialogs import dialog, grounding, media, write_picture

from data_pipelines import records, shards
from data_pipelines.catalog import load_catalog
from data_pipelines.families import FAMILIES
from data_pipelines.images import load_image
from data_pipelines.index import load_index
from data_pipelines.joined import JoinedStore
from data_pipelines.mixture import (
    MixtureError,
    ingredients,
    load_mixture,
    mixture_plan,
    realised,
)
from data_pipelines.permute import permuted
from data_pipelines.shards import DialogStore
from refvlm_jax.cli import main as cli

BUNDLED = sorted((Path(__file__).parents[2] / "configs" / "mixtures").glob("*.toml"))
MIXTURE = """
about = "a test"
[[parts]]
source = "left"
tasks = ["T17"]
portion = 0.25
seed = 9
[[parts]]
source = "left*"
weight = 2.0
[[parts]]
source = "right"
tasks = ["T17"]
"""
COUNTS = {("left", "T17"): 40, ("left", "T13"): 10, ("right", "T17"): 30, ("right", "T13"): 7}


def write(root, source):
    """A dataset of one source, two tasks and pictures of its own with common names."""
    (root / "images").mkdir(parents=True)
    for k in range(5):
        write_picture(root / "images", f"{k}.png")
    with shards.ShardWriter(root / "data", source) as writer:
        for (name, task), count in COUNTS.items():
            for k in range(count if name == source else 0):
                made = dialog([grounding([("cup", [k % 8])])], f"{source}/train/{k}/{task}")
                image = media(f"{k % 5}.png")
                writer.write(
                    records.encode(replace(made, source=source, task_id=task, image=image))
                )
    shards.write_manifest(
        root / "data", stores={source: writer.shards}, image_root=str(root / "images"),
        counts={}, extra={},
    )  # fmt: skip
    return root / "data"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixture")
    return [write(root / "left", "left"), write(root / "right", "right")]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "test.toml"
    path.write_text(MIXTURE, encoding="utf-8")
    return load_mixture(path)


def label(store, record):
    return f"{store[record].source}/{store[record].task_id}"


def test_datasets_are_read_as_one(folders):
    store = JoinedStore(folders)
    parts = [DialogStore(folder) for folder in folders]
    assert len(store) == sum(map(len, parts)) == sum(COUNTS.values())
    assert [store[k].uid for k in (0, 49, 50, 86)] == [
        parts[0][0].uid, parts[0][49].uid, parts[1][0].uid, parts[1][36].uid
    ]  # fmt: skip
    # Paths are absolute, so that any root reads them.
    assert load_image(store[60].image, Path("nowhere")).shape == (30, 40, 3)
    with pytest.raises(IndexError, match="record 87 of 87"):
        store[87]
    with pytest.raises(ValueError, match="each once"):
        JoinedStore([folders[0], folders[0]])


def test_pictures_of_different_folders_are_different(folders):
    catalog = load_catalog(JoinedStore(folders))
    assert len(np.unique(catalog.picture)) == 10 and catalog.sources == ("left", "right")
    names = catalog.by_source().tasks
    assert names == ("left/T13", "left/T17", "right/T13", "right/T17")
    store = JoinedStore(folders)
    code = catalog.by_source().task
    assert all(names[code[k]] == label(store, k) for k in range(len(store)))


def test_ingredients_follow_the_first_part_that_names_them(folders, mixture):
    found = ingredients(mixture, load_index(JoinedStore(folders), by_source=True))
    kept = {one.label: (one.records, one.kept) for one in found}
    assert kept == {"left/T13": (10, 10), "left/T17": (40, 10), "right/T17": (30, 30)}
    shares = [one.share for one in found]
    assert np.allclose(shares, np.array([20, 10, 30]) / 60)


@pytest.mark.parametrize("merge", [1, 2])
def test_realised_shares_are_those_wanted(folders, mixture, merge):
    store = JoinedStore(folders)
    plan = mixture_plan(store, mixture, merge=merge, seed=4)
    anchors = Counter(plan.index.tasks[plan.index.task[plan._anchor(k)]] for k in range(4096))
    assert anchors == {"left/T13": 1365, "left/T17": 683, "right/T17": 2048}
    counts = realised(plan, 512)
    assert set(counts) == {"left/T13", "left/T17", "right/T17"}
    assert all(label(store, k) == plan.index.tasks[plan.index.task[k]] for k in plan.rows(3))


def test_a_portion_is_the_first_of_a_fixed_permutation(folders, mixture):
    store = JoinedStore(folders)
    plan = mixture_plan(store, mixture, seed=4)
    (one,) = (x for x in ingredients(mixture, plan.index) if x.label == "left/T17")
    pool = plan.index.pool("left/T17")
    wanted = {int(pool[permuted(k, 40, one.key)]) for k in range(10)}
    drawn = [row[0] for row in plan.batch(0, 4096) if row[0] in set(pool.tolist())]
    assert set(drawn) == wanted and len(wanted) == 10
    assert max(Counter(drawn).values()) - min(Counter(drawn).values()) <= 1
    other = mixture_plan(store, mixture, seed=5)
    assert {row[0] for row in other.batch(0, 4096)} == {row[0] for row in plan.batch(0, 4096)}
    changed = replace(mixture, parts=(replace(mixture.parts[0], seed=1), *mixture.parts[1:]))
    again = mixture_plan(store, changed, seed=4)
    assert {row[0] for row in again.batch(0, 4096)} != {row[0] for row in plan.batch(0, 4096)}


def test_one_dataset_may_be_mixed_too(folders, mixture, caplog):
    with caplog.at_level(logging.WARNING):
        plan = mixture_plan(DialogStore(folders[0]), mixture)
    assert plan.pools == ("left/T13", "left/T17")
    assert "no record of right ['T17']; left out" in caplog.text


@pytest.mark.parametrize(
    "text, message",
    [
        ("about = 1", "one or more"),
        ("about = ", "not TOML"),
        ('about = "x"\n[[parts]]\nsourc = "a"', "part 1: unknown field 'sourc'"),
        ('about = "x"\n[[parts]]\ntasks = []', "part 1: .*source"),
        ('about = "x"\n[[parts]]\nsource = "a"\nportion = 2.0', "portion is 2.0"),
        ('about = "x"\n[[parts]]\nsource = "a"\nweight = "b"', "weight = 'b' has the wrong type"),
        ('about = "x"\n[[parts]]\nsource = "a"\ntasks = ["T77"]', "tasks has .'T77'."),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(MixtureError, match=message) as error:
        load_mixture(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MixtureError, match="no mixture"):
        load_mixture(tmp_path / "none.toml")


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.stem)
def test_bundled_mixtures_name_sources_that_exist(path):
    """Names of sources are those of the converters, some with the name of a subset."""
    mixture = load_mixture(path)
    known = {"refcoco_unc", "refcoco+_unc", "refcocog_umd", "pointqa_local", "pointqa_twice"}
    for part in mixture.parts:
        assert any(
            part.holds(f"{name}/{(part.tasks or ('T01',))[0]}") for name in {*known, *FAMILIES}
        )


def test_all_stages_are_there():
    stems = {path.stem for path in BUNDLED}
    assert stems == {"stage1", "stage2", "sft", "stage3_keypoints", "stage3_sam"}


def test_the_command_prints_and_writes_shares(folders, tmp_path, capsys):
    path, out = tmp_path / "m.toml", tmp_path / "m.json"
    path.write_text(MIXTURE, encoding="utf-8")
    built = [str(folder) for folder in folders]
    code = cli.main(["data", "mixture", str(path), "--built", *built, "--out", str(out)])
    shown = capsys.readouterr().out
    assert code == 0 and "left/T17" in shown and "0.1667" in shown
    content = json.loads(out.read_text(encoding="utf-8"))
    assert [one["label"] for one in content["ingredients"]][1] == "left/T17"
    assert all(one["key"] > 0 for one in content["ingredients"])
