"""Captions grounded in masks: panoptic narratives, and the GCG sets beside OpenPSG's."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.records import Dialog, MediaRef, Region, Span
from data_pipelines.sources.base import (
    Drops,
    RecordError,
    box_of,
    mask_of,
    need,
    read_json,
    read_list,
)
from data_pipelines.sources.coco import media
from data_pipelines.sources.dialogs import dialog_of, text_range, tighten, turn_of, words
from data_pipelines.sources.label_maps import pixel_region, read_ids
from data_pipelines.sources.panoptic import class_names, map_folder, picture_rows
from data_pipelines.sources.sizes import Sizes, sized_picture
from refvlm_jax.trp.tokens import Unit


def narratives(
    path: Path, split: str, folder: str, drops: Drops, *, panoptic: str = "", maps: str = ""
) -> Iterator[Dialog]:
    """T20 of every narrative with segments, T01 of the others.

    Args:
      path: `png_coco_{split}2017.json`: rows {image_id, caption, segments: [{utterance,
        segment_ids}]}.
      split: train or val.
      folder: folder of COCO's 2017 pictures.
      drops: takes unusable records.
      panoptic: `panoptic_{split}2017.json`; the one beside `path` by default.
      maps: folder of its PNG maps, as in `panoptic.segments`.
    """
    beside = Path(panoptic) if panoptic else Path(path).with_name(f"panoptic_{split}2017.json")
    content = read_json(beside, keys=("images", "annotations", "categories"))
    at, images = map_folder(beside, maps), picture_rows(content, beside, drops)
    names = class_names(content["categories"], beside, drops)
    marked = _by_image(content["annotations"], beside, drops)
    for number, row in enumerate(read_list(path)):
        found: list[Dialog] = []
        with drops.guard(f"{path}, row {number}"):
            image_id = int(need(row, "image_id")[0])
            if image_id not in images or image_id not in marked:
                raise RecordError("V02", f"image {image_id} is not in {beside.name}; drop the row")
            image, note = media(images[image_id], folder), marked[image_id]
            kinds = {s["id"]: names.get(s["category_id"], "") for s in note["segments_info"]}
            uid = ("png", split, number)
            found = [_narrative(row, at / note["file_name"], image, kinds, uid, image_id)]
        yield from found


def _by_image(rows: Any, path: Path, drops: Drops) -> dict[Any, dict[str, Any]]:
    found: dict[Any, dict[str, Any]] = {}
    for place, row in enumerate(rows):
        with drops.guard(f"{path}, annotation at index {place}"):
            found[need(row, "image_id")[0]] = row
    return found


def _narrative(
    row: dict[str, Any],
    file: Path,
    image: MediaRef,
    kinds: dict[int, str],
    uid: tuple[str, str, Any],
    image_id: int,
) -> Dialog:
    text, places = "", []
    for part in need(row, "segments")[0]:
        said, ids = words(need(part, "utterance")[0], "utterance"), part.get("segment_ids") or []
        text += " " if text else ""
        if ids:
            places.append((len(text), len(text) + len(said), [int(k) for k in ids]))
        text += said
    if not places:
        caption = words(need(row, "caption")[0], "caption")
        return dialog_of("T01", uid, image, [turn_of("T01", caption)], image_id=image_id)
    answer, moved = tighten(text, [(s, e) for s, e, _ in places])
    ids = read_ids(file, image)
    place: dict[int, int] = {}
    regions: list[Region] = []
    spans = []
    for (start, end), (_, _, numbers) in zip(moved, places, strict=True):
        for k in numbers:
            if k not in place:
                place[k] = len(regions)
                regions.append(pixel_region(ids == k, kinds.get(k, "")))
        targets = list(dict.fromkeys(place[k] for k in numbers))
        spans.append(Span(start=start, end=end, unit=Unit.MASK, targets=targets))
    turn = turn_of("T20", answer, spans=spans)
    return dialog_of("T20", uid, image, [turn], regions, image_id=image_id)


def flickr_gcg(path: Path, split: str, folder: str, drops: Drops) -> Iterator[Dialog]:
    """T20 of every picture of `flickr_mergedGT_GCG_{split}.json`, in COCO's layout.

    `images` hold the caption; annotations hold `tokens_positive` and, beside the box, `sam_mask`.
    """
    content = read_json(path, keys=("images", "annotations"))
    noted: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for place, row in enumerate(content["annotations"]):
        with drops.guard(f"{path}, annotation at index {place}"):
            noted[need(row, "image_id")[0]].append(row)
    for number, row in enumerate(content["images"]):
        found: list[Dialog] = []
        with drops.guard(f"{path}, image at index {number}"):
            key, caption = need(row, "id", "caption")
            image = media(row, folder)
            groups: dict[tuple[int, int], list[Region]] = {}
            for note in noted[key]:
                if not note.get("ignore"):
                    places, mask = need(note, "tokens_positive", "sam_mask")
                    at = text_range(caption, places[0])
                    groups.setdefault(at, []).append(_region(mask, image))
            found = [_caption(caption, groups, image, ("flickr_gcg", split, number))]
        yield from found


def refcocog_gcg(
    path: Path, split: str, folder: str, drops: Drops, sizes: Sizes
) -> Iterator[Dialog]:
    """T20 of every row {img_file_name, caption, refs: [{sentence, segmentation}]}.

    A sentence is found in the caption without regard to case; one that is not there, or only inside
    another's words, is left out.
    """
    for number, row in enumerate(read_list(path)):
        found: list[Dialog] = []
        with drops.guard(f"{path}, row {number}"):
            name, caption, refs = need(row, "img_file_name", "caption", "refs")
            image = sized_picture(name, folder, sizes)
            caption = caption.strip('"').strip()
            groups: dict[tuple[int, int], list[Region]] = {}
            for ref in refs:
                sentence, segmentation = need(ref, "sentence", "segmentation")
                start = caption.lower().find(words(sentence, "sentence").lower())
                place = start, start + len(sentence)
                if start >= 0 and not any(_overlap(place, other) for other in groups):
                    groups.setdefault(place, []).append(_region(segmentation, image))
            found = [_caption(caption, groups, image, ("refcocog_gcg", split, number))]
        yield from found


def gcg_eval(
    path: Path, split: str, folder: str, drops: Drops, sizes: Sizes, *, masks: str = ""
) -> Iterator[Dialog]:
    """T20 of every caption of `{split}_gcg_coco_caption_gt.json`, for evaluation only.

    Label k names mask k of the picture; equal labels are found one after the other in the caption.

    Args:
      path: the caption file: annotations {image_id, caption, labels}.
      split: val or test.
      folder: folder of the pictures `<image_id>.jpg`.
      drops: takes unusable records.
      sizes: sizes of the pictures.
      masks: `{split}_gcg_coco_mask_gt.json`; the one beside `path` by default.
    """
    path = Path(path)
    beside = Path(masks) if masks else path.with_name(path.name.replace("caption", "mask"))
    of_image: dict[str, list[Any]] = defaultdict(list)
    for place, row in enumerate(read_json(beside, keys=("annotations",))["annotations"]):
        with drops.guard(f"{beside}, annotation at index {place}"):
            image_id, segmentation = need(row, "image_id", "segmentation")
            of_image[str(image_id)].append(segmentation)
    for number, row in enumerate(read_json(path, keys=("annotations",))["annotations"]):
        found: list[Dialog] = []
        with drops.guard(f"{path}, annotation at index {number}"):
            key, caption, labels = need(row, "image_id", "caption", "labels")
            image = sized_picture(f"{key}.jpg", folder, sizes)
            groups = _labelled(caption, labels, of_image[str(key)], image)
            found = [_caption(caption, groups, image, ("gcg_eval", split, f"{key}-{number}"))]
            found[0].flags.append("eval_only")
        yield from found


def _labelled(
    caption: str, labels: list[str], masks: list[Any], image: MediaRef
) -> dict[tuple[int, int], list[Region]]:
    if len(labels) != len(masks):
        raise RecordError("V10", f"{len(labels)} labels, {len(masks)} masks; drop the caption")
    groups: dict[tuple[int, int], list[Region]] = {}
    for label, mask in zip(labels, masks, strict=True):
        start = caption.lower().find(label.lower())
        while start >= 0 and any(_overlap((start, start + len(label)), p) for p in groups):
            start = caption.lower().find(label.lower(), start + 1)
        if start < 0:
            raise RecordError("V20", f"label {label!r} is not in the caption; drop the caption")
        groups[start, start + len(label)] = [_region(mask, image)]
    return groups


def _overlap(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def _region(segmentation: Any, image: MediaRef) -> Region:
    mask = mask_of(segmentation, image)
    return Region(box=box_of(mask), mask=mask)


def _caption(
    caption: str,
    groups: dict[tuple[int, int], list[Region]],
    image: MediaRef,
    uid: tuple[str, str, Any],
) -> Dialog:
    if not groups:
        raise RecordError("V10", "no phrase of the caption has a mask; drop the picture")
    regions: list[Region] = []
    spans = []
    for (start, end), found in sorted(groups.items()):
        targets = list(range(len(regions), len(regions) + len(found)))
        regions += found
        spans.append(Span(start=start, end=end, unit=Unit.MASK, targets=targets))
    turn = turn_of("T20", caption, spans=spans, references=[caption])
    return dialog_of("T20", uid, image, [turn], regions)
