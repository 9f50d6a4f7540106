"""RefCOCO as published: the restricted unpickler, and the records of refs with instances.json."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from native_files import IMAGE, annotation, photo, sound, write

from data_pipelines.build import BuildRecipe, SourceEntry, build
from data_pipelines.records import Dialog, PromptKind, Span
from data_pipelines.sources import refcoco_native
from data_pipelines.sources.base import Drops, SourceError
from data_pipelines.sources.unpickle import read_pickle
from refvlm_jax.trp.tokens import Unit

COCO_NAME = "COCO_train2014_000000000007.jpg"


def ref(number: int, *texts: str, **changes: Any) -> dict[str, Any]:
    sentences = [
        {"sent_id": 10 * number + k, "sent": t, "raw": t.upper(), "tokens": t.split()}
        for k, t in enumerate(texts)
    ]
    row = {
        "ref_id": number, "ann_id": 1, "image_id": 7, "category_id": 1, "split": "testA",
        "file_name": "COCO_train2014_000000000007_1.jpg", "sentences": sentences,
        "sent_ids": [s["sent_id"] for s in sentences],
    }  # fmt: skip
    return row | changes


def published(tmp_path: Path, refs: Any, *, protocol: int = 0, by: str = "unc") -> Path:
    folder = tmp_path / "refcoco+"
    content = {
        "images": [IMAGE | {"file_name": COCO_NAME}],
        "annotations": [annotation(1)],
        "categories": [{"id": 1, "name": "dog"}],
    }
    write(folder / "instances.json", content)
    path = folder / f"refs({by}).p"
    path.write_bytes(pickle.dumps(refs, protocol=protocol))
    return path


def convert(path: Path, split: str = "testA", **options: Any) -> tuple[list[Dialog], Drops]:
    drops = Drops()
    return list(refcoco_native.native(path, split, "train2014", drops, **options)), drops


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_every_expression_is_located_and_every_object_described(
    tmp_path: Path, protocol: int
) -> None:
    path = published(tmp_path, [ref(3, "left dog", "the  dog")], protocol=protocol)
    dialogs, drops = convert(path)
    assert not drops.lines
    assert [d.uid for d in sound(dialogs)] == [
        "refcoco+_unc/testA/30/T17", "refcoco+_unc/testA/30/T18",
        "refcoco+_unc/testA/31/T17", "refcoco+_unc/testA/31/T18",
        "refcoco+_unc/testA/30/T06", "refcoco+_unc/testA/30/T07",
    ]  # fmt: skip
    first = dialogs[0]
    assert first.image and first.image.path == f"train2014/{COCO_NAME}"
    assert first.regions[0].box == (10, 10, 30, 30)
    assert first.turns[0].slots == {"expr": "left dog"} and first.turns[0].answer == "target."
    assert first.turns[0].spans == [Span(start=0, end=6, unit=Unit.BOX, targets=[0])]
    assert first.provenance == {"image_id": 7, "ann_id": 1, "ref_id": 3}
    assert dialogs[3].turns[0].spans[0].unit is Unit.MASK
    caption = dialogs[4].turns[0]
    assert caption.references == ["left dog", "the dog"]
    assert caption.prompts[0].kind is PromptKind.BOX


def test_training_describes_an_object_with_every_expression(tmp_path: Path) -> None:
    path = published(tmp_path, [ref(3, "a", "b", split="train"), ref(4, "c")])
    dialogs, _ = convert(path, "train", phrase="expression")
    assert len(sound(dialogs)) == 8
    assert dialogs[0].turns[0].answer == "a."


def test_bad_refs_are_dropped_aloud(tmp_path: Path) -> None:
    refs = [ref(1, "dog"), ref(2, "dog", ann_id=99), ref(3, " "), ref(4), {"split": "testA"}]
    dialogs, drops = convert(published(tmp_path, refs))
    assert len(dialogs) == 4 and dict(drops.counts) == {"V01": 2, "V18": 1}
    assert "ref 2" in drops.lines[0] and "ref at index 4" in drops.lines[2]


def test_missing_files_and_other_versions(tmp_path: Path) -> None:
    path = published(tmp_path, [ref(1, "dog")])
    with pytest.raises(SourceError, match=r"no ref of split 'test'; the file has \['testA'\]"):
        convert(path, "test")
    with pytest.raises(SourceError, match=r"refs\(umd\)\.p: cannot be read"):
        convert(path.with_name("refs(umd).p"))
    with pytest.raises(SourceError, match="not a list of refs"):
        convert(published(tmp_path, {"refs": []}))
    path = published(tmp_path, [ref(1, "dog")])
    path.with_name("instances.json").unlink()
    with pytest.raises(SourceError, match=r"instances\.json: not found"):
        convert(path)


class Evil:
    """Runs a command when a careless reader unpickles it."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_is_refused_in_one_line(tmp_path: Path, protocol: int) -> None:
    path = published(tmp_path, [ref(1, "dog"), {"x": Evil(tmp_path / "ran")}], protocol=protocol)
    with pytest.raises(SourceError, match=r"refs\(unc\)\.p: refused, it asks for \w+\.system") as e:
        convert(path)
    assert "\n" not in str(e.value) and not (tmp_path / "ran").exists()


def test_a_nested_getattr_is_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "x.p"
    path.write_bytes(b"cbuiltins\neval\n(S'1+1'\ntR.")
    with pytest.raises(SourceError, match=r"refused, it asks for builtins\.eval"):
        read_pickle(path)


def test_plain_pickles_of_old_pythons(tmp_path: Path) -> None:
    path = tmp_path / "x.p"
    content = {"a": [1, (2.5, None)], "b": {True: 10**30, "c": ["x"]}}
    for protocol in (0, 2, 4):
        path.write_bytes(pickle.dumps(content | ({} if protocol < 4 else {"d": {3}}), protocol))
        assert read_pickle(path)["a"] == [1, (2.5, None)]
    path.write_bytes(b"(lp0\nS'caf\\xc3\\xa9'\np1\na.")
    assert read_pickle(path) == ["café"]
    path.write_bytes(b"(lp0\nS'caf\\xe9'\np1\na.")
    assert read_pickle(path) == ["café"]


# Claims to hold a terabyte.
HUGE = b"\x80\x05\x96\x00\x00\x00\x00\x00\x01\x00\x00."


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"not a pickle", b"(lp0\nI1\na", HUGE])
def test_damaged_pickles(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.p"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"x\.p: (damaged|refused)") as error:
        read_pickle(path)
    assert "\n" not in str(error.value)


def test_the_family_builds(tmp_path: Path) -> None:
    path = published(tmp_path, [ref(1, "dog", split="val")])
    photo(tmp_path / "train2014" / COCO_NAME)
    recipe = BuildRecipe(
        "val", str(tmp_path), "train2014", "", (SourceEntry("refcoco", str(path)),)
    )
    report = build(recipe, tmp_path / "out", progress=False)
    assert report.counts == {"T06": 1, "T07": 1, "T17": 1, "T18": 1} and not report.dropped
