"""COCO: instances (detection, segmentation) and captions."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
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
from data_pipelines.sources.dialogs import dialog_of, task_of, turn_of
from data_pipelines.tasks import TASKS
from refvlm_jax.trp.tokens import Unit


def file_name(row: dict[str, Any]) -> Any:
    """The picture's name in an `images` row."""
    return need(row, "file_name")[0]


def media(
    row: dict[str, Any], folder: str, named: Callable[[dict[str, Any]], Any] = file_name
) -> MediaRef:
    """The picture of an `images` row."""
    width, height = need(row, "width", "height")
    return picture(named(row), folder, width, height)


def instances(
    path: Path,
    split: str,
    folder: str,
    drops: Drops,
    *,
    source: str = "coco",
    named: Callable[[dict[str, Any]], Any] = file_name,
    kept: Sequence[str] = (),
) -> Iterator[Dialog]:
    """T13 and T14 of every picture with objects: one phrase a category, in order of appearance.

    Crowd regions are never targets; they stay in the record so that scoring can ignore them.

    Args:
      path: the annotation file.
      split: split of the records.
      folder: folder of the pictures.
      drops: takes unusable records.
      source: name of the source.
      named: the picture's name in an `images` row.
      kept: fields of an `images` row that go to the provenance.
    """
    content = read_json(path, keys=("images", "annotations", "categories"))
    names = category_names(content["categories"], path, drops)
    rows_of = by_image(content["annotations"], path, drops)
    for place, row in enumerate(content["images"]):
        found: list[Dialog] = []
        with drops.guard(where_of(path, "image", row, place)):
            (number,) = need(row, "id")
            image = media(row, folder, named)
            regions = _regions(rows_of.get(number, []), image, names, path, drops)
            known = image_number(number, place) | {k: row[k] for k in kept if k in row}
            uid = (source, split, number)
            if any(not r.is_crowd for r in regions):
                found = [objects(task, uid, image, regions, known) for task in ("T13", "T14")]
        yield from found


def image_number(number: Any, place: int) -> dict[str, Any]:
    """A picture's id as scorers know it: whole; a name stands beside its place in the file."""
    if isinstance(number, int):
        return {"image_id": number}
    return {"image_id": place + 1, "native_id": number}


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


def objects(
    task: str,
    uid: tuple[str, str, Any],
    image: MediaRef,
    regions: list[Region],
    provenance: dict[str, Any],
) -> Dialog:
    """T13 or T14 of a picture: its regions that are no crowd, by category."""
    groups: dict[str, list[int]] = {}
    for k, found in enumerate(regions):
        if not found.is_crowd:
            groups.setdefault(found.category, []).append(k)
    answer, spans = phrase_list(groups, task_of(task).unit)
    turn = turn_of(task, answer, spans=spans)
    flags = ["crowd_present"] if any(r.is_crowd for r in regions) else []
    return dialog_of(task, uid, image, [turn], regions, flags, **provenance)


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


def captions(
    path: Path,
    split: str,
    folder: str,
    drops: Drops,
    *,
    source: str = "coco_captions",
    kept: Sequence[str] = (),
) -> Iterator[Dialog]:
    """T01: one dialogue a caption; all captions of the picture are its references.

    Args:
      path: the annotation file.
      split: split of the records.
      folder: folder of the pictures.
      drops: takes unusable records.
      source: name of the source.
      kept: fields of an `images` row that go to the provenance.
    """
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
            known = {"image_id": number} | {k: row[k] for k in kept if k in row}
            uid = (source, split, number)
            found = _captions(texts.get(number, []), media(row, folder), uid, known)
        yield from found


def _captions(
    texts: list[str], image: MediaRef, uid: tuple[str, str, Any], provenance: dict[str, Any]
) -> list[Dialog]:
    spec, (source, split, image_id) = TASKS["T01"], uid
    # Evaluation asks once a picture: the other captions are only references there.
    return [
        Dialog(
            uid=f"{source}/{split}/{image_id}/{number}",
            source=source,
            split=split,
            task_id="T01",
            image=image,
            turns=[Turn(task_name=spec.command, bank=spec.bank, answer=text, references=texts)],
            provenance=provenance,
        )
        for number, text in enumerate(texts if split == "train" else texts[:1])
    ]


def nocaps(path: Path, split: str, folder: str, drops: Drops) -> Iterator[Dialog]:
    """T01 of `nocaps_val_4500_captions.json`, for evaluation only; the domain is kept."""
    kept = ("domain", "open_images_id")
    for dialog in captions(path, split, folder, drops, source="nocaps", kept=kept):
        dialog.flags.append("eval_only")
        yield dialog


def ade20k(path: Path, split: str, folder: str, drops: Drops) -> Iterator[Dialog]:
    """T13 and T14 of `ade20k_instance_{train,val}.json`, whose picture ids are names."""
    return instances(path, split, folder, drops, source="ade20k")
