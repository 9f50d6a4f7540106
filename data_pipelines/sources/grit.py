"""GRIT and GranD: a folder with one JSON file a picture."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.records import Dialog, MediaRef, PromptKind, Region, Span, Turn
from data_pipelines.sources.base import (
    Drops,
    RecordError,
    SourceError,
    box_xyxy,
    clean_name,
    mask_of,
    need,
    picture,
    read_json,
)
from data_pipelines.sources.coco import phrase_list
from data_pipelines.sources.dialogs import dialog_of, phrase_turn, shown, text_range, turn_of, words
from refvlm_jax import rle
from refvlm_jax.trp.tokens import Unit

TURNS = 6
"""Turns of a dialogue that asks about one object after the other."""


def files_of(root: Path) -> list[Path]:
    """All JSON files below a folder, in order; SourceError when there are none."""
    found = sorted(Path(root).rglob("*.json"))
    if not found:
        raise SourceError(
            f"{root}: no JSON file in this folder; give the folder of the annotations"
        )
    return found


def _loaded(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except SourceError as error:  # one bad file of millions is a bad record
        raise RecordError("V01", str(error)) from None
    if not isinstance(content, dict):
        raise RecordError("V01", "not a JSON object; fetch the file again")
    return content


def grit(path: Path, split: str, folder: str, drops: Drops) -> Iterator[Dialog]:
    """T01, T13, T15, T17, T06 and T19 of every `<key>.json`, whose picture is `<key>.jpg`."""
    root = Path(path)
    for file in files_of(root):
        found: list[Dialog] = []
        with drops.guard(str(file)):
            row = _loaded(file)
            key, width, height = need(row, "key", "width", "height")
            below = file.parent.relative_to(root).as_posix()
            name = f"{key}.jpg" if below == "." else f"{below}/{key}.jpg"
            image = picture(name, folder, width, height)
            found = list(_grit_dialogs(row, image, ("grit", split, key)))
        yield from found


def _grit_dialogs(
    row: dict[str, Any], image: MediaRef, uid: tuple[str, str, Any]
) -> Iterator[Dialog]:
    caption = need(row, "caption")[0]
    yield dialog_of("T01", uid, image, [turn_of("T01", words(caption, "caption"))])
    chunks = _ranges(row.get("noun_chunks") or [], caption, image)
    if chunks:
        regions, by_name = _by_name(chunks, caption)
        answer, spans = phrase_list(by_name, Unit.BOX)
        yield dialog_of("T13", uid, image, [turn_of("T13", answer, spans=spans)], regions)
        turns = _asked("T15", list(by_name.items()))
        yield dialog_of("T15", uid, image, turns, regions)
        yield _captioned("T19", uid, image, caption, chunks)
    expressions = _ranges(row.get("ref_exps") or [], caption, image)
    if expressions:
        regions, by_name = _by_name(expressions, caption)
        yield dialog_of("T17", uid, image, _asked("T17", list(by_name.items())), regions)
        turns = [
            turn_of("T06", name, prompts=shown(PromptKind.BOX, targets[0]))
            for name, targets in list(by_name.items())[:TURNS]
        ]
        yield dialog_of("T06", uid, image, turns, regions)


def _ranges(
    rows: Sequence[Sequence[float]], caption: str, image: MediaRef
) -> dict[tuple[int, int], list[Region]]:
    """Boxes by the range of the caption they belong to; coordinates come as fractions."""
    found: dict[tuple[int, int], list[Region]] = {}
    for start, end, x1, y1, x2, y2, *_ in rows:
        place = text_range(caption, (int(start), int(end)))
        scaled = [x1 * image.width, y1 * image.height, x2 * image.width, y2 * image.height]
        found.setdefault(place, []).append(Region(box=box_xyxy(scaled, image)))
    return found


def _by_name(
    ranges: dict[tuple[int, int], list[Region]], caption: str
) -> tuple[list[Region], dict[str, list[int]]]:
    """All regions, and their indices by what the caption calls them."""
    regions: list[Region] = []
    by_name: dict[str, list[int]] = {}
    for place, boxes in ranges.items():
        name = words(caption[slice(*place)], "phrase")
        by_name.setdefault(name, []).extend(range(len(regions), len(regions) + len(boxes)))
        regions += boxes
    return regions, by_name


def _asked(wanted: str, groups: Sequence[tuple[str, list[int]]]) -> list[Turn]:
    """One question a name; the name is the answer's phrase too."""
    return [
        phrase_turn(wanted, name, targets, slots={"expr": name}) for name, targets in groups[:TURNS]
    ]


def _captioned(
    wanted: str,
    uid: tuple[str, str, Any],
    image: MediaRef,
    caption: str,
    ranges: dict[tuple[int, int], list[Region]],
) -> Dialog:
    regions: list[Region] = []
    spans = []
    unit = Unit.BOX if wanted == "T19" else Unit.MASK
    for (start, end), found in sorted(ranges.items()):
        targets = list(range(len(regions), len(regions) + len(found)))
        regions += found
        spans.append(Span(start=start, end=end, unit=unit, targets=targets))
    return dialog_of(wanted, uid, image, [turn_of(wanted, caption, spans=spans)], regions)


def grand(
    path: Path, split: str, folder: str, drops: Drops, *, floating: bool = False
) -> Iterator[Dialog]:
    """T01, T02, T13 to T16, T06, T07, T19 and T20 of every picture of SA-1B.

    Args:
      path: folder of `sa_<n>.json`, each {picture name: {objects, floating_objects,
        short_captions, dense_caption}}.
      split: split of the records.
      folder: folder of the pictures.
      drops: takes unusable records.
      floating: detect and segment floating objects too, which no relation or caption names.
    """
    for file in files_of(Path(path)):
        content: dict[str, Any] = {}
        with drops.guard(str(file)):
            content = _loaded(file)
        for name, row in content.items():
            found: list[Dialog] = []
            with drops.guard(f"{file}, picture {name}"):
                found = list(_grand_dialogs(row, name, split, folder, floating))
            yield from found


def _grand_dialogs(
    row: dict[str, Any], name: str, split: str, folder: str, floating: bool
) -> Iterator[Dialog]:
    objects = list(need(row, "objects")[0])
    loose = list(row.get("floating_objects") or [])
    if not objects + loose:
        raise RecordError("V02", "no object, so nothing tells the picture's size; drop the file")
    height, width = need(need((objects + loose)[0], "segmentation")[0], "size")[0]
    image = picture(name, folder, width, height)
    uid = ("grand", split, Path(name).stem)
    by_id = {need(found, "id")[0]: _grand_region(found, image) for found in objects + loose}
    yield from _grand_objects(objects, by_id, image, uid, loose if floating else [])
    captions = [("T01", k, c) for k, c in enumerate(row.get("short_captions") or [])]
    if dense := row.get("dense_caption"):
        captions.append(("T02", 0, dense))
    for wanted, number, caption in captions:
        text = words(need(caption, "caption")[0], "caption")
        at = (*uid[:2], f"{uid[2]}-{wanted}-{number}")
        yield dialog_of(wanted, at, image, [turn_of(wanted, text)])
        ranges = _details(caption, by_id)
        if ranges:
            yield _captioned("T19", at, image, caption["caption"], ranges)
            yield _captioned("T20", at, image, caption["caption"], ranges)


def _grand_region(row: dict[str, Any], image: MediaRef) -> Region:
    bbox, segmentation = need(row, "bbox", "segmentation")
    label = row.get("label") or (row.get("labels") or [""])[0]
    return Region(
        category=clean_name(label),
        box=box_xyxy(bbox, image),
        mask=mask_of(segmentation, image, "rle"),
    )


def _grand_objects(
    objects: list[dict[str, Any]],
    by_id: dict[Any, Region],
    image: MediaRef,
    uid: tuple[str, str, Any],
    loose: list[dict[str, Any]],
) -> Iterator[Dialog]:
    listed = [by_id[row["id"]] for row in objects + loose]
    named = [region for region in listed if region.category]
    by_label: dict[str, list[int]] = {}
    for k, found in enumerate(named):
        by_label.setdefault(found.category, []).append(k)
    for task, unit in (("T13", Unit.BOX), ("T14", Unit.MASK)):
        if named:
            answer, spans = phrase_list(by_label, unit)
            yield dialog_of(task, uid, image, [turn_of(task, answer, spans=spans)], named)
    described = [
        (row["attributes"][0], by_id[row["id"]]) for row in objects if row.get("attributes")
    ]
    described = [(words(text, "attribute"), region) for text, region in described]
    if not described:
        return
    by_text: dict[str, list[int]] = {}
    for k, (text, _) in enumerate(described):
        by_text.setdefault(text, []).append(k)
    regions = [region for _, region in described]
    for task in ("T15", "T16"):
        yield dialog_of(task, uid, image, _asked(task, list(by_text.items())), regions)
    order = sorted(range(len(described)), key=lambda k: -_area(regions[k]))[:TURNS]
    for task, kind in (("T06", PromptKind.BOX), ("T07", PromptKind.MASK)):
        turns = [turn_of(task, described[k][0], prompts=shown(kind, k)) for k in order]
        yield dialog_of(task, uid, image, turns, regions)


def _area(region: Region) -> int:
    assert region.mask is not None
    return rle.area(region.mask.counts, region.mask.h, region.mask.w)


def _details(
    caption: dict[str, Any], by_id: dict[Any, Region]
) -> dict[tuple[int, int], list[Region]]:
    """Regions by the range of the phrase; a phrase without a range or an object is plain text."""
    found: dict[tuple[int, int], list[Region]] = {}
    for row in caption.get("details") or []:
        place = row.get("tokens_positive")
        ids = row["ids"] if row.get("ids") is not None else [row.get("id")]
        regions = [by_id[k] for k in dict.fromkeys(ids) if k in by_id]
        if not place or not regions:
            continue
        at = place[0] if isinstance(place[0], list) else place
        start, end = text_range(caption["caption"], at)
        if caption["caption"][start:end] != need(row, "phrase")[0]:
            raise RecordError(
                "V20",
                f"phrase {row['phrase']!r} is not at [{start}, {end}) of the caption; drop it",
            )
        found.setdefault((start, end), []).extend(regions)
    return found
