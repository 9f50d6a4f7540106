"""The shapes world in more native formats, written from its own annotation files."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refvlm_jax import rle

FOLDER = "native"
_CHOICES = 4


@dataclass(frozen=True)
class Thing:
    """An object of a picture."""

    phrase: str
    """As the caption puts it: "A blue star"."""
    place: tuple[int, int]
    """Range of the phrase in the caption."""
    mask: dict[str, Any]
    """COCO run-length mask."""
    box: tuple[float, float, float, float]
    """x1, y1, x2, y2."""

    @property
    def name(self) -> str:
        """The phrase without its article."""
        return self.phrase.split(" ", 1)[1]

    @property
    def centre(self) -> tuple[float, float]:
        """x, y of the middle of the box."""
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2

    @property
    def colour_and_shape(self) -> tuple[str, str] | None:
        """The two words of a plain solid; None for people and the like."""
        words = self.name.split()
        return (words[0], words[1]) if len(words) == 2 else None


@dataclass(frozen=True)
class Scene:
    """A picture with its caption and everything the caption names."""

    number: int
    file: str
    width: int
    height: int
    caption: str
    things: tuple[Thing, ...]

    @property
    def stem(self) -> str:
        """The file's name without its ending."""
        return Path(self.file).stem


def write_formats(world: Path, split: str) -> Path:
    """Writes `native/{split}` of a rendered world, whole or not at all; returns the folder.

    Formats: GQA, CLEVR, PointQA, VCR, LLaVA's mix, Osprey, GRIT, GranD and Visual7W.
    """
    folder = Path(world) / FOLDER / split
    if folder.is_dir():
        return folder
    scenes = read_scenes(Path(world), split)
    temporary = folder.with_name(f".{split}.{os.getpid()}.tmp")
    try:
        for name, content in _files(scenes, split).items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def read_scenes(world: Path, split: str) -> list[Scene]:
    """The pictures of a split from their grounded captions (OpenPSG's layout)."""
    rows = json.loads((world / f"gcg/open_psg_{split}.json").read_text(encoding="utf-8"))
    return [_scene(row) for row in rows]


def _scene(row: dict[str, Any]) -> Scene:
    things = []
    for phrase, found in row["groundings"].items():
        place = found["token_positives"]
        start, end = place[0] if isinstance(place[0], list) else place
        for mask in found["rle_masks"]:
            box = rle.tight_box(mask["counts"].encode("ascii"), *mask["size"])
            if box is not None:
                x1, y1, x2, y2 = map(float, box)
                things.append(Thing(phrase, (start, end), mask, (x1, y1, x2, y2)))
    file, (height, width) = Path(row["file_name"]).name, things[0].mask["size"]
    return Scene(int(Path(file).stem), file, width, height, row["caption"], tuple(things))


def _files(scenes: Sequence[Scene], split: str) -> dict[str, str]:
    whole = {
        f"gqa/{split}_balanced_questions.json": {s.stem: _gqa(s) for s in scenes},
        f"gqa/{split}_sceneGraphs.json": {s.stem: _scene_graph(s) for s in scenes},
        f"clevr/questions/CLEVR_{split}_questions.json": {
            "questions": [row for s in scenes for row in _clevr_questions(s)]
        },
        f"clevr/scenes/CLEVR_{split}_scenes.json": {"scenes": [_clevr_scene(s) for s in scenes]},
        "llava/llava_v1_5_mix665k.json": [_llava(s) for s in scenes],
        "osprey/osprey_detail.json": [_osprey(s) for s in scenes],
        "visual7w/dataset_v7w_pointing.json": {
            "images": [_visual7w(s, split) for s in scenes],
            "boxes": [row for s in scenes for row in _visual7w_boxes(s)],
        },
        **{f"grit/{s.stem}.json": _grit(s) for s in scenes},
        **{f"grand/sa_{s.number}.json": {s.file: _grand(s)} for s in scenes},
    }
    rows: dict[str, list[Any]] = {
        f"point_qa/pointQA_local_{split}.jsonl": [r for s in scenes for r in _point_qa(s)],
        f"vcr/{split}.jsonl": [_vcr(s, split) for s in scenes if len(s.things) > 1],
    }
    dumped = {name: json.dumps(content) for name, content in whole.items()}
    return dumped | {name: "".join(f"{json.dumps(r)}\n" for r in rows[name]) for name in rows}


def _xywh(thing: Thing) -> list[float]:
    x1, y1, x2, y2 = thing.box
    return [x1, y1, x2 - x1, y2 - y1]


def _gqa(scene: Scene) -> dict[str, Any]:
    first = scene.things[0]
    phrase = first.phrase.lower()
    last = 2 + len(phrase.split())
    same = [str(k) for k, t in enumerate(scene.things) if t.phrase == first.phrase]
    return {
        "imageId": scene.stem,
        "question": f"Is there {phrase}?",
        "answer": "yes",
        "fullAnswer": f"Yes, there is {phrase} in the picture.",
        # The verdict is not counted; "a blue star" starts at word 2.
        "annotations": {"fullAnswer": {f"2:{last}": ",".join(same)}},
    }


def _scene_graph(scene: Scene) -> dict[str, Any]:
    objects = {
        str(k): {"name": t.name, **dict(zip("xywh", _xywh(t), strict=True))}
        for k, t in enumerate(scene.things)
    }
    return {"width": scene.width, "height": scene.height, "objects": objects}


def _solids(scene: Scene) -> list[Thing]:
    return [t for t in scene.things if t.colour_and_shape]


def _clevr_scene(scene: Scene) -> dict[str, Any]:
    solids = _solids(scene)
    middles = [t.centre for t in solids]
    sides: dict[str, Callable[[int, int], bool]] = {
        "left": lambda k, j: middles[j][0] < middles[k][0],
        "right": lambda k, j: middles[j][0] > middles[k][0],
        "front": lambda k, j: middles[j][1] > middles[k][1],
        "behind": lambda k, j: middles[j][1] < middles[k][1],
    }
    count = range(len(solids))
    return {
        "image_filename": scene.file,
        "objects": [
            {"color": words[0], "shape": words[1], "size": "large", "material": "rubber",
             "pixel_coords": [*t.centre, 10.0]}
            for t in solids if (words := t.colour_and_shape)
        ],
        "relationships": {
            side: [[j for j in count if holds(k, j)] for k in count] for side, holds in sides.items()
        },
    }  # fmt: skip


def _clevr_questions(scene: Scene) -> list[dict[str, Any]]:
    found = []
    words = [t.colour_and_shape or ("", "") for t in _solids(scene)]
    for place, colour in enumerate(dict.fromkeys(colour for colour, _ in words)):
        found.append(
            {
                "question": f"How many {colour} things are there?",
                "answer": str(sum(c == colour for c, _ in words)),
                "image_filename": scene.file,
                "image_index": scene.number,
                "question_index": 10 * scene.number + place,
                "program": [
                    {
                        "function": name,
                        "inputs": [k - 1] if k else [],
                        "value_inputs": [colour] if k == 1 else [],
                    }
                    for k, name in enumerate(("scene", "filter_color", "count"))
                ],
            }
        )
    return found


def _point_qa(scene: Scene) -> list[dict[str, Any]]:
    return [
        {
            "file_path": scene.file, "img_w": scene.width, "img_h": scene.height,
            "question": "What is this?", "answer": t.name, "bbox": t.box, "point": t.centre,
        }
        for t in scene.things
    ]  # fmt: skip


def _vcr(scene: Scene, split: str) -> dict[str, Any]:
    return {
        "annot_id": f"{split}-{scene.number}", "img_fn": scene.file,
        "width": scene.width, "height": scene.height,
        "objects": [t.name for t in scene.things], "boxes": [[*t.box, 1.0] for t in scene.things],
        "question": ["What", "is", "near", [0], "?"],
        "answer_choices": [["Nothing", "."], [[1], "is", "near", [0], "."]], "answer_label": 1,
        "rationale_choices": [[[0], "and", [1], "share", "the", "picture", "."]],
        "rationale_label": 0,
    }  # fmt: skip


def _llava(scene: Scene) -> dict[str, Any]:
    said = (
        "<image>\nWhat is in the picture?", scene.caption,
        "How many things is that?", f"I count {len(scene.things)} things in the picture.",
    )  # fmt: skip
    turns = [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(said)]
    return {"id": str(scene.number), "image": scene.file, "conversations": turns}


def _osprey(scene: Scene) -> dict[str, Any]:
    return {
        "file_name": scene.file,
        "height": scene.height,
        "width": scene.width,
        "annotation": [{"segmentation": t.mask} for t in scene.things],
        "description": [
            f"<region{k + 1}>: This is {t.phrase.lower()}, seen from the front."
            for k, t in enumerate(scene.things)
        ],
    }


def _visual7w(scene: Scene, split: str) -> dict[str, Any]:
    right = scene.things[0]
    wrong = [k for k, t in enumerate(scene.things) if t.name != right.name]
    numbers = [100 * scene.number + k for k in wrong[: _CHOICES - 1]]
    pair = {
        "qa_id": scene.number, "image_id": scene.number, "question": f"Which is the {right.name}?",
        "answer": 100 * scene.number, "multiple_choices": numbers,
    }  # fmt: skip
    return {
        "image_id": scene.number, "filename": scene.file, "split": split,
        "qa_pairs": [pair] if numbers else [],
    }  # fmt: skip


def _visual7w_boxes(scene: Scene) -> list[dict[str, Any]]:
    sides = ("x", "y", "width", "height")
    return [
        {
            "box_id": 100 * scene.number + k,
            "name": t.name,
            **dict(zip(sides, _xywh(t), strict=True)),
        }
        for k, t in enumerate(scene.things)
    ]


def _grit(scene: Scene) -> dict[str, Any]:
    sides = (scene.width, scene.height) * 2
    chunks = [
        [*t.place, *(v / side for v, side in zip(t.box, sides, strict=True)), 1.0]
        for t in scene.things
    ]
    return {
        "key": scene.stem, "width": scene.width, "height": scene.height, "caption": scene.caption,
        "noun_chunks": chunks, "ref_exps": chunks[:1],
    }  # fmt: skip


def _grand(scene: Scene) -> dict[str, Any]:
    details = [
        {"phrase": t.phrase, "tokens_positive": list(t.place), "id": k}
        for k, t in enumerate(scene.things)
    ]
    listed = ", ".join(t.phrase.lower() for t in scene.things)
    return {
        "objects": [
            {"id": k, "bbox": t.box, "segmentation": t.mask, "labels": [t.name.replace(" ", "_")],
             "attributes": [t.name]}
            for k, t in enumerate(scene.things)
        ],
        "floating_objects": [],
        "short_captions": [{"caption": scene.caption, "details": details}],
        "dense_caption": {"caption": f"The picture shows {listed}, and nothing else.", "details": []},
    }  # fmt: skip
