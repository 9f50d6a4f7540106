"""The annotations of one scene, as rows of the native files."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from data_pipelines.shapes_world import language
from data_pipelines.shapes_world.attributes import CATEGORY_IDS, HELD_OUT
from data_pipelines.shapes_world.draw import Drawing, outline
from data_pipelines.shapes_world.interactive import prompts
from data_pipelines.shapes_world.people import joints
from data_pipelines.shapes_world.scene import Scene, Thing

MIN_VISIBLE = 0.3
"""Things covered more than this are not annotated."""


@dataclass
class Rows:
    """Rows of every file for one picture."""

    image: dict[str, Any]
    instances: list[dict[str, Any]] = field(default_factory=list)
    captions: list[dict[str, Any]] = field(default_factory=list)
    people: list[dict[str, Any]] = field(default_factory=list)
    refs: list[dict[str, Any]] = field(default_factory=list)
    vqa: list[dict[str, Any]] = field(default_factory=list)
    interactive: dict[str, Any] = field(default_factory=dict)
    flickr: dict[str, Any] = field(default_factory=dict)
    open_psg: dict[str, Any] = field(default_factory=dict)
    visual_genome: dict[str, Any] = field(default_factory=dict)


def compressed(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run-length dictionary."""
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(v) for v in rle["size"]], "counts": rle["counts"].decode("ascii")}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """COCO's run-length dictionary with plain counts, as crowd regions carry it."""
    flat = mask.ravel(order="F").astype(np.int8)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
    counts = np.diff(np.concatenate([[0], edges])).tolist()
    return {"size": list(mask.shape), "counts": [int(c) for c in counts]}


def tight_box(mask: np.ndarray) -> list[float]:
    """x1, y1, x2, y2 of the pixels of a mask."""
    rows, columns = np.nonzero(mask)
    return [float(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


def annotate(
    scene: Scene, drawing: Drawing, image_id: int, file_name: str, rng: np.random.Generator
) -> Rows:
    """All rows of a drawn scene. Ids are image_id * 100 + n."""
    visible = [
        k for k, (seen, whole) in enumerate(zip(drawing.masks, drawing.whole, strict=True))
        if seen.sum() >= max(MIN_VISIBLE * whole.sum(), 8)
    ]  # fmt: skip
    size = {"width": scene.width, "height": scene.height}
    rows = Rows(image={"id": image_id, "file_name": file_name, **size})
    ids = {k: image_id * 100 + n for n, k in enumerate(visible)}
    special = [k for k in visible if (scene.things[k].shape, scene.things[k].colour) in HELD_OUT]
    for k in visible:
        rows.instances.append(_instance(scene.things[k], drawing, k, ids[k], image_id))
        if scene.things[k].is_person:
            rows.people.append(_person(rows.instances[-1], scene.things[k], drawing, k))
    for n, text in enumerate(language.captions(scene, visible, rng)):
        rows.captions.append({"id": image_id * 100 + n, "image_id": image_id, "caption": text})
    by_id = {row["id"]: row for row in rows.instances}
    for n, e in enumerate(language.pick_expressions(scene, visible, rng, first=special)):
        rows.refs.append(_ref(e, by_id[ids[e.thing]], drawing, rows.image, image_id * 100 + n))
    for n, q in enumerate(language.questions(scene, visible, rng, first=special)):
        rows.vqa.append(_vqa(q, rows.image, image_id * 100 + n))
    rows.interactive = _interactive(rows, drawing, visible, rng)
    told = language.grounded(scene, visible, rng)
    rows.flickr = _flickr(told, drawing, file_name, image_id)
    rows.open_psg = _open_psg(told, drawing, file_name)
    rows.visual_genome = _visual_genome(scene, visible, rows, rng)
    return rows


def _instance(thing: Thing, drawing: Drawing, k: int, ann_id: int, image_id: int) -> dict[str, Any]:
    mask = drawing.masks[k]
    covered = mask.sum() < drawing.whole[k].sum()
    simple = not covered and not thing.is_person
    polygons = [[float(round(v, 2)) for point in p for v in point] for p in outline(thing)]
    # As in COCO: the box of a polygon is its extent, unrounded; that of a run-length mask its pixels.
    x1, y1, x2, y2 = _extent(polygons) if simple else tight_box(mask)
    return {
        "id": ann_id,
        "image_id": image_id,
        "category_id": CATEGORY_IDS[thing.shape],
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": polygons if simple else compressed(mask),
    }


def _extent(polygons: list[list[float]]) -> list[float]:
    points = np.array([p for polygon in polygons for p in polygon]).reshape(-1, 2)
    return [*points.min(0).tolist(), *points.max(0).tolist()]


def _person(row: dict[str, Any], thing: Thing, drawing: Drawing, k: int) -> dict[str, Any]:
    """COCO keypoints: 2 = seen, 1 = behind something, 0 = outside the picture."""
    height, width = drawing.masks[k].shape
    points: list[float] = []
    for x, y in joints(thing.x, thing.y, thing.radius, thing.pose):
        if not (0 <= x < width and 0 <= y < height):
            points += [0, 0, 0]
            continue
        hidden = any(m[int(y), int(x)] for m in drawing.masks[k + 1 :])
        points += [round(float(x), 2), round(float(y), 2), 1 if hidden else 2]
    labelled = sum(v > 0 for v in points[2::3])
    return {**row, "keypoints": points, "num_keypoints": labelled}


def _ref(
    e: language.Expression,
    row: dict[str, Any],
    drawing: Drawing,
    image: dict[str, Any],
    ref_id: int,
) -> dict[str, Any]:
    x, y, w, h = row["bbox"]
    return {
        "img_path": image["file_name"],
        "image_id": image["id"],
        "ann_id": row["id"],
        "ref_id": ref_id,
        "expression": e.text,
        "kind": e.kind,
        "bbox": [x, y, x + w, y + h],
        "mask": row["segmentation"],
        "height": image["height"],
        "width": image["width"],
    }


def _vqa(q: language.Question, image: dict[str, Any], question_id: int) -> dict[str, Any]:
    kinds = {"existence": "yes/no", "count": "number"}
    return {
        "image_path": image["file_name"],
        "image_id": image["id"],
        "question": q.text,
        "question_id": question_id,
        "annotation": {
            "multiple_choice_answer": q.answer,
            "answers": [{"answer": q.answer, "answer_id": n + 1} for n in range(10)],
            "answer_type": kinds.get(q.kind, "other"),
            "question_type": q.kind,
        },
    }


def _interactive(
    rows: Rows, drawing: Drawing, visible: list[int], rng: np.random.Generator
) -> dict[str, Any]:
    annotations = []
    for row, k in zip(rows.instances, visible, strict=True):
        drawn = prompts(drawing.masks[k], rng)
        masks = {f"{kind}_visual_prompt_mask": compressed(m) for kind, m in drawn.items()}
        keys = ("id", "segmentation", "bbox", "category_id", "area")
        annotations.append({**{key: row[key] for key in keys}, **masks})
    image = rows.image
    size = {"width": image["width"], "height": image["height"]}
    return {
        "image": image["file_name"],
        "image_id": image["id"],
        "image_info": {"file_name": image["file_name"], "id": image["id"], **size},
        "anns": annotations,
    }


def _flickr(
    text: language.Grounded, drawing: Drawing, file_name: str, image_id: int
) -> dict[str, Any]:
    boxes: list[list[float]] = []
    sequence, sentence, place = [], "", 0
    for start, end, things in text.phrases:
        sequence.append(list(range(len(boxes), len(boxes) + len(things))))
        boxes += [tight_box(drawing.masks[k]) for k in things]
        sentence += f"{text.text[place:start]}<ph_st>{text.text[start:end]}<ph_ed>"
        place = end
    height, width = drawing.picture.shape[:2]
    return {
        "image_id": file_name,
        "id": image_id,
        "width": width,
        "height": height,
        "sentence": sentence + text.text[place:],
        "boxes": boxes,
        "boxes_seq": sequence,
    }


def _open_psg(text: language.Grounded, drawing: Drawing, file_name: str) -> dict[str, Any]:
    groundings = {
        text.text[start:end]: {
            "token_positives": [start, end],
            "rle_masks": [compressed(drawing.masks[k]) for k in things],
        }
        for start, end, things in text.phrases
    }
    height, width = drawing.picture.shape[:2]
    size = {"width": width, "height": height}
    return {"file_name": file_name, "caption": text.text, "groundings": groundings, **size}


def _visual_genome(
    scene: Scene, visible: list[int], rows: Rows, rng: np.random.Generator
) -> dict[str, Any]:
    textured, regions = scene.level > 1, []
    for row, k in zip(rows.instances, visible, strict=True):
        place = dict(zip(("x", "y", "width", "height"), row["bbox"], strict=True))
        phrase = language.description(scene.things[k], rng, textured=textured)
        keys = {"region_id": row["id"], "image_id": row["image_id"], "phrase": phrase}
        regions.append({**keys, **place})
    return {"id": rows.image["id"], "regions": regions}
