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
    read_json,
    region,
)
from data_pipelines.tasks import TASKS
from refvlm_jax.trp.tokens import Unit


def media(row: dict[str, Any], folder: str) -> MediaRef:
    """The picture of an `images` row."""
    name, width, height = need(row, "file_name", "width", "height")
    return MediaRef(path=f"{folder}/{name}" if folder else name, width=width, height=height)


def instances(path: Path, split: str, folder: str, drops: Drops) -> Iterator[Dialog]:
    """T13 and T14 of every picture with objects: one phrase a category, in order of appearance.

    Crowd regions are never targets; they stay in the record so that scoring can ignore them.
    """
    content = read_json(path, keys=("images", "annotations", "categories"))
    names = {row["id"]: clean_name(row["name"]) for row in content["categories"]}
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in content["annotations"]:
        by_image[row.get("image_id", -1)].append(row)
    for row in content["images"]:
        where = f"{path}, image {row.get('id')}"
        try:
            image = media(row, folder)
        except RecordError as error:
            drops.add(error.code, where, str(error))
            continue
        regions = _regions(by_image.get(row["id"], []), image, names, path, drops)
        if any(not r.is_crowd for r in regions):
            yield from (_objects(task, regions, image, split, row["id"]) for task in ("T13", "T14"))


def _regions(
    rows: list[dict[str, Any]], image: MediaRef, names: dict[int, str], path: Path, drops: Drops
) -> list[Region]:
    found = []
    for row in rows:
        try:
            if (category := names.get(row.get("category_id", -1))) is None:
                raise RecordError(
                    "V01",
                    f"unknown category id {row.get('category_id')}; the file's `categories` lack it",
                )
            found.append(region(row, image, category))
        except RecordError as error:
            drops.add(error.code, f"{path}, annotation {row.get('id')}", str(error))
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
    for row in content["annotations"]:
        if caption := str(row.get("caption", "")).strip():
            texts[row.get("image_id", -1)].append(" ".join(caption.split()))
        else:
            drops.add("V03", f"{path}, annotation {row.get('id')}", "empty caption; remove it")
    spec = TASKS["T01"]
    for row in content["images"]:
        for number, text in enumerate(texts.get(row.get("id"), [])):
            # Evaluation asks once a picture: the other captions are only references there.
            if number and split != "train":
                break
            yield Dialog(
                uid=f"coco_captions/{split}/{row['id']}/{number}",
                source="coco_captions",
                split=split,
                task_id="T01",
                image=media(row, folder),
                turns=[
                    Turn(
                        task_name=spec.command,
                        bank=spec.bank,
                        answer=text,
                        references=texts[row["id"]],
                    )
                ],
                provenance={"image_id": row["id"]},
            )
