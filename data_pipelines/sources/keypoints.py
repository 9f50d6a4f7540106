"""COCO person keypoints: the joints of everyone, and of one person marked by a region."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.records import Dialog, MediaRef, Prompt, PromptKind, Region, Span, Turn
from data_pipelines.region_rules import keypoint_problem
from data_pipelines.sources.base import Drops, RecordError, need, read_json, region
from data_pipelines.sources.coco import by_image, category_names, media, phrase_list, where_of
from data_pipelines.sources.interactive import prompt_kinds
from data_pipelines.tasks import TASKS


def people(path: Path, split: str, folder: str, drops: Drops) -> Iterator[Dialog]:
    """T23 of every picture with labelled people, and T24 of every one of them.

    Crowds and people without a labelled joint are never targets; they stay in the T23 record so
    that scoring can ignore them.
    """
    content = read_json(path, keys=("images", "annotations", "categories"))
    names = category_names(content["categories"], path, drops)
    rows_of = by_image(content["annotations"], path, drops)
    for place, row in enumerate(content["images"]):
        found: list[Dialog] = []
        with drops.guard(where_of(path, "image", row, place)):
            (number,) = need(row, "id")
            image = media(row, folder)
            known = list(_people(rows_of.get(number, []), image, names, path, drops))
            if any(person.keypoints for _, person in known):
                found = [_everyone([p for _, p in known], image, split, number)]
                found += _one_by_one(known, image, split, number)
        yield from found


def _people(
    rows: list[dict[str, Any]], image: MediaRef, names: dict[int, str], path: Path, drops: Drops
) -> Iterator[tuple[int, Region]]:
    """Annotation ids and regions; `keypoints` is empty for a person without a labelled joint."""
    for place, row in enumerate(rows):
        with drops.guard(where_of(path, "annotation", row, place)):
            number, category_id, flat = need(row, "id", "category_id", "keypoints")
            if (category := names.get(category_id)) is None:
                raise RecordError(
                    "V01", f"unknown category id {category_id}; the file's `categories` lack it"
                )
            person = region(row, image, category)
            person.keypoints = None if person.is_crowd else _joints(flat, image)
            yield int(number), person


def _joints(flat: Any, image: MediaRef) -> list[list[float]]:
    """[K, 3] of COCO's flat list; empty when no joint is labelled."""
    if not isinstance(flat, list) or not flat or len(flat) % 3:
        raise RecordError("V08", "`keypoints` is no list of x, y, v triples; repair the annotation")
    points = [[float(v) for v in flat[k : k + 3]] for k in range(0, len(flat), 3)]
    if not any(v for _, _, v in points):
        return []
    if problem := keypoint_problem(points, image):
        raise RecordError("V08", f"{problem}; repair the annotation")
    return points


def _everyone(people: list[Region], image: MediaRef, split: str, image_id: int) -> Dialog:
    spec = TASKS["T23"]
    groups: dict[str, list[int]] = {}
    for k, person in enumerate(people):
        if person.keypoints:
            groups.setdefault(person.category, []).append(k)
    answer, spans = phrase_list(groups, spec.unit)
    crowd = any(person.is_crowd for person in people)
    return Dialog(
        uid=f"coco_keypoints/{split}/{image_id}/T23",
        source="coco_keypoints",
        split=split,
        task_id="T23",
        image=image,
        regions=people,
        turns=[Turn(task_name=spec.command, bank=spec.bank, answer=answer, spans=spans)],
        flags=["crowd_present"] if crowd else [],
        provenance={"image_id": image_id},
    )


def _one_by_one(
    people: list[tuple[int, Region]], image: MediaRef, split: str, image_id: int
) -> Iterator[Dialog]:
    spec = TASKS["T24"]
    for number, person in people:
        for kind in prompt_kinds("T24", number, split) if person.keypoints else ():
            if kind is PromptKind.MASK and person.mask is None:
                continue
            name = person.category
            span = Span(start=0, end=len(name), unit=spec.unit, targets=[0])
            turn = Turn(
                task_name=spec.command,
                bank=spec.bank,
                answer=f"{name}.",
                prompts=[Prompt(region=0, kind=kind)],
                spans=[span],
            )
            yield Dialog(
                uid=f"coco_keypoints/{split}/{number}/T24-{kind.name.lower()}",
                source="coco_keypoints",
                split=split,
                task_id="T24",
                image=image,
                regions=[person],
                turns=[turn],
                provenance={"image_id": image_id, "ann_id": number},
            )
