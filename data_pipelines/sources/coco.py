"""COCO: instances (detection, segmentation) and captions."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.records import Dialog, MediaRef, Region, Span, Turn
from data_pipelines.sources.base import (
    Drops,
    RecordError,
    clean_name,
    need,
    picture,
    read_json,
    region,
)
from data_pipelines.tasks import TASKS
from refvlm_jax.trp.tokens import Unit


def media(row: dict[str, Any], folder: str) -> MediaRef:
    """The picture of an `images` row."""
    name, width, height = need(row, "file_name", "width", "height")
    return picture(name, folder, width, height)


def instances(path: Path, split: str, folder: str, drops: Drops) -> Iterator[Dialog]:
    """T13 and T14 of every picture with objects: one phrase a category, in order of appearance.

    Crowd regions are never targets; they stay in the record so that scoring can ignore them.
    """
    content = read_json(path, keys=("images", "annotations", "categories"))
    names = category_names(content["categories"], path, drops)
    rows_of = by_image(content["annotations"], path, drops)
    for place, row in enumerate(content["images"]):
        found: list[Dialog] = []
        with drops.guard(where_of(path, "image", row, place)):
            (number,) = need(row, "id")
            image = media(row, folder)
            regions = _regions(rows_of.get(number, []), image, names, path, drops)
            if any(not r.is_crowd for r in regions):
                found = [_objects(task, regions, image, split, number) for task in ("T13", "T14")]
        yield from found


def category_names(rows: Any, path: Path, drops: Drops) -> dict[int, str]:
    """Clean class names by id."""
    names: dict[int, str] = {}
    for place, row in enumerate(rows):
        with drops.guard(where_of(path, "category", row, place)):
            number, name = need(row, "id", "name")
            names[number] = clean_name(name)
    return names


def by_image(rows: Any, path: Path, drops: Drops) -> dict[int, list[dict[str, Any]]]:
    """Annotations by `image_id`."""
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for place, row in enumerate(rows):
        with drops.guard(where_of(path, "annotation", row, place)):
            (number,) = need(row, "image_id")
            found[number].append(row)
    return found


def where_of(path: Path, kind: str, row: Any, place: int) -> str:
    """A record as errors name it: by its id, or by its place in the list when it has none."""
    number = row.get("id") if isinstance(row, dict) else None
    return f"{path}, {kind} {number}" if number is not None else f"{path}, {kind} at index {place}"


def _regions(
    rows: list[dict[str, Any]], image: MediaRef, names: dict[int, str], path: Path, drops: Drops
) -> list[Region]:
    found: list[Region] = []
    for place, row in enumerate(rows):
        with drops.guard(where_of(path, "annotation", row, place)):
            if (category := names.get(row.get("category_id", -1))) is None:
                raise RecordError(
                    "V01",
                    f"unknown category id {row.get('category_id')}; the file's `categories` lack it",
                )
            found.append(region(row, image, category))
    return found


def _objects(
    task: str, regions: list[Region], image: MediaRef, split: str, image_id: int
) -> Dialog:
    spec = TASKS[task]
    groups: dict[str, list[int]] = {}
    for k, found in enumerate(regions):
        if not found.is_crowd:
            groups.setdefault(found.category, []).append(k)
    answer, spans = phrase_list(groups, spec.unit)
    crowd = any(r.is_crowd for r in regions)
    return Dialog(
        uid=f"coco/{split}/{image_id}/{task}",
        source="coco",
        split=split,
        task_id=task,
        image=image,
        regions=regions,
        turns=[Turn(task_name=spec.command, bank=spec.bank, answer=answer, spans=spans)],
        flags=["crowd_present"] if crowd else [],
        provenance={"image_id": image_id},
    )


def phrase_list(groups: dict[str, list[int]], unit: Unit) -> tuple[str, list[Span]]:
    """ "dog, cat." with one span a name."""
    answer, spans = "", []
    for name, targets in groups.items():
        answer += ", " if answer else ""
        spans.append(
            Span(start=len(answer), end=len(answer) + len(name), unit=unit, targets=targets)
        )
        answer += name
    return f"{answer}.", spans


def captions(path: Path, split: str, folder: str, drops: Drops) -> Iterator[Dialog]:
    """T01: one dialogue a caption; all captions of the picture are its references."""
    content = read_json(path, keys=("images", "annotations"))
    texts: dict[int, list[str]] = defaultdict(list)
    for number, rows in by_image(content["annotations"], path, drops).items():
        for place, row in enumerate(rows):
            if caption := str(row.get("caption", "")).strip():
                texts[number].append(" ".join(caption.split()))
            else:
                where = where_of(path, "annotation", row, place)
                drops.add("V03", where, "empty caption; remove it")
    for place, row in enumerate(content["images"]):
        found: list[Dialog] = []
        with drops.guard(where_of(path, "image", row, place)):
            (number,) = need(row, "id")
            found = _captions(texts.get(number, []), media(row, folder), split, number)
        yield from found


def _captions(texts: list[str], image: MediaRef, split: str, image_id: int) -> list[Dialog]:
    spec = TASKS["T01"]
    # Evaluation asks once a picture: the other captions are only references there.
    return [
        Dialog(
            uid=f"coco_captions/{split}/{image_id}/{number}",
            source="coco_captions",
            split=split,
            task_id="T01",
            image=image,
            turns=[Turn(task_name=spec.command, bank=spec.bank, answer=text, references=texts)],
            provenance={"image_id": image_id},
        )
        for number, text in enumerate(texts if split == "train" else texts[:1])
    ]
