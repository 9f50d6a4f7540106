"""RefCOCO, RefCOCO+ and RefCOCOg as published: `refs(<by>).p` beside `instances.json`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.records import Dialog, MediaRef, PromptKind, Region
from data_pipelines.sources.base import (
    Drops,
    RecordError,
    SourceError,
    box_xywh,
    mask_of,
    need,
    read_json,
)
from data_pipelines.sources.coco import media
from data_pipelines.sources.dialogs import dialog_of, phrase_turn, shown, turn_of, words
from data_pipelines.sources.refcoco import TARGET
from data_pipelines.sources.unpickle import read_pickle

_FILE = re.compile(r"refs\((\w+)\)\.p")


def native(
    path: Path,
    split: str,
    folder: str,
    drops: Drops,
    *,
    instances: str = "",
    dataset: str = "",
    phrase: str = TARGET,
) -> Iterator[Dialog]:
    """T17 and T18 of every expression, T06 and T07 of every expression or, in evaluation, object.

    Args:
      path: `refs(unc).p`, `refs(google).p` or `refs(umd).p`.
      split: train, val, test, testA or testB, as the file knows it.
      folder: folder of COCO's 2014 training pictures.
      drops: takes unusable records.
      instances: COCO instances of the dataset; `instances.json` beside `path` by default.
      dataset: refcoco, refcoco+ or refcocog; the name of the folder by default.
      phrase: as in `refcoco.expressions`.
    """
    path = Path(path)
    refs = _refs_of_split(path, split, drops)
    beside = Path(instances) if instances else path.parent / "instances.json"
    content = read_json(beside, keys=("images", "annotations"))
    images, annotations = (_by_id(content[k], beside, drops) for k in ("images", "annotations"))
    by = _FILE.fullmatch(path.name)
    source = f"{dataset or path.parent.name}_{by[1] if by else 'refs'}"
    for place, ref in refs:
        found: list[Dialog] = []
        with drops.guard(f"{path}, ref {_number(ref, place)}"):
            image, region = _target(ref, images, annotations, folder)
            found = list(_dialogs(ref, image, region, source, split, phrase))
        yield from found


def _refs_of_split(path: Path, split: str, drops: Drops) -> list[tuple[int, Any]]:
    refs = read_pickle(path)
    if not isinstance(refs, list) or not all(isinstance(r, dict) for r in refs):
        raise SourceError(f"{path}: not a list of refs; is it another file version?")
    found = []
    for place, ref in enumerate(refs):
        with drops.guard(f"{path}, ref {_number(ref, place)}"):
            if need(ref, "split")[0] == split:
                found.append((place, ref))
    if not found:
        splits = sorted({str(r.get("split")) for r in refs})
        raise SourceError(f"{path}: no ref of split {split!r}; the file has {splits}")
    return found


def _by_id(rows: Any, path: Path, drops: Drops) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for place, row in enumerate(rows):
        with drops.guard(f"{path}, row {place}"):
            (number,) = need(row, "id")
            found[number] = row
    return found


def _number(ref: dict[str, Any], place: int) -> str:
    return str(ref["ref_id"]) if "ref_id" in ref else f"at index {place}"


def _target(
    ref: dict[str, Any], images: dict[int, Any], annotations: dict[int, Any], folder: str
) -> tuple[MediaRef, Region]:
    image_id, ann_id = need(ref, "image_id", "ann_id")
    if image_id not in images or ann_id not in annotations:
        raise RecordError(
            "V01",
            f"image {image_id} or annotation {ann_id} is not in instances.json; "
            "take both files of one archive",
        )
    # The file_name of a ref names the object, not the picture.
    image = media(images[image_id], folder)
    bbox, segmentation = need(annotations[ann_id], "bbox", "segmentation")
    # A few refs mean a crowd region; here it is the target, so it is not marked as one.
    return image, Region(box=box_xywh(bbox, image), mask=mask_of(segmentation, image))


def _dialogs(
    ref: dict[str, Any], image: MediaRef, region: Region, source: str, split: str, phrase: str
) -> Iterator[Dialog]:
    (sentences,) = need(ref, "sentences")
    expressions = [(s["sent_id"], words(s["sent"], "expression", "V18")) for s in sentences]
    ids: dict[str, Any] = {k: ref[k] for k in ("image_id", "ann_id", "ref_id") if k in ref}
    for number, expression in expressions:
        written = TARGET if phrase == TARGET else expression
        for task in ("T17", "T18"):
            turn = phrase_turn(task, written, [0], slots={"expr": expression})
            yield dialog_of(task, (source, split, number), image, [turn], [region], **ids)
    # Evaluation describes an object once: all its expressions are the references.
    texts = [text for _, text in expressions]
    for number, text in expressions if split == "train" else expressions[:1]:
        for task, kind in (("T06", PromptKind.BOX), ("T07", PromptKind.MASK)):
            turn = turn_of(task, text, prompts=shown(kind, 0), references=texts)
            yield dialog_of(task, (source, split, number), image, [turn], [region], **ids)
