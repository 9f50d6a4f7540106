"""Writing a world: pictures and native annotation files, whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from data_pipelines.shapes_world.annotate import Rows, annotate
from data_pipelines.shapes_world.attributes import CATEGORY_IDS
from data_pipelines.shapes_world.draw import draw
from data_pipelines.shapes_world.scene import sample_scene

VERSION = 2
SPLITS = ("train", "val", "val_combos")
_CHUNK = 100


class WorldError(ValueError):
    """The output folder holds something else."""


def generate(
    out: Path,
    *,
    level: int,
    scenes: Mapping[str, int],
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
) -> dict[str, Any]:
    """Renders a world into `out` and returns its counts; an equal one is left as it is.

    Args:
      level: 1 (plain), 2 (textured) or 3 (cluttered).
      scenes: pictures of each split of SPLITS.

    Raises:
      WorldError: `out` holds another world, or an argument is out of range.
    """
    out = Path(out)
    if level not in (1, 2, 3) or set(scenes) - set(SPLITS):
        raise WorldError(f"level {level}, splits {sorted(scenes)}: need 1..3 and {SPLITS}")
    wanted = {"version": VERSION, "level": level, "scenes": dict(scenes), "seed": seed}
    if (out / "world.json").is_file():
        return _existing(out, wanted)
    if out.exists() and any(out.iterdir()):
        raise WorldError(f"{out}: not empty and no world of ours; choose another folder")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    counts = {}
    try:
        for split, count in scenes.items():
            counts[split] = _write_split(temporary, split, count, level, seed, workers, progress)
        _dump(temporary / "world.json", {**wanted, "counts": counts})
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return counts


def _existing(out: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    found = json.loads((out / "world.json").read_text(encoding="utf-8"))
    differing = [key for key, value in wanted.items() if found.get(key) != value]
    if differing:
        shown = ", ".join(f"{k} is {found.get(k)}, wanted {wanted[k]}" for k in differing)
        raise WorldError(f"{out}: holds another world ({shown}); delete it or choose a new folder")
    print(f"{out}: this world exists already")
    return found["counts"]


def _write_split(
    root: Path, split: str, count: int, level: int, seed: int, workers: int, progress: bool
) -> dict[str, int]:
    for folder in (
        f"images/{split}",
        f"depth/{split}",
        "annotations",
        "refs",
        "vqa",
        "interactive",
        "gcg",
        "vg",
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
    job = partial(_render_chunk, root=root, split=split, level=level, seed=seed)
    chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    shown = partial(
        track, total=len(chunks), description=f"rendering {split}", disable=not progress
    )
    if workers > 1 and len(chunks) > 1:
        with ProcessPoolExecutor(workers) as pool:
            rows = list(chain.from_iterable(shown(pool.map(job, chunks))))
    else:
        rows = list(chain.from_iterable(shown(map(job, chunks))))
    _write_annotations(root, split, rows)
    return {
        "images": len(rows),
        "instances": sum(len(r.instances) for r in rows),
        "people": sum(len(r.people) for r in rows),
        "expressions": sum(len(r.refs) for r in rows),
        "questions": sum(len(r.vqa) for r in rows),
    }


def _render_chunk(indices: range, *, root: Path, split: str, level: int, seed: int) -> list[Rows]:
    return [_render(index, root, split, level, seed) for index in indices]


def _render(index: int, root: Path, split: str, level: int, seed: int) -> Rows:
    """One scene, drawn again with the next generator until it shows at least two things."""
    number = SPLITS.index(split)
    for attempt in range(100):
        rng = np.random.default_rng([seed, number, index, attempt])
        scene = sample_scene(level, rng, held_out=split == "val_combos")
        if len(scene.things) < 2:
            continue
        drawing = draw(scene)
        image_id = (number + 1) * 1_000_000 + index
        rows = annotate(scene, drawing, image_id, f"{image_id:012d}.jpg", rng)
        if len(rows.instances) >= 2 and rows.refs:
            break
    else:
        raise WorldError(f"scene {index} of {split}: no layout found in 100 attempts")
    picture = Image.fromarray(drawing.picture)
    picture.save(root / f"images/{split}/{image_id:012d}.jpg", quality=95, subsampling=0)
    millimetres = (drawing.depth * 1000).round().astype(np.uint16)
    Image.fromarray(millimetres).save(root / f"depth/{split}/{image_id:012d}.png", compress_level=1)
    return rows


def _write_annotations(root: Path, split: str, rows: list[Rows]) -> None:
    images = [r.image for r in rows]
    categories = [{"id": i, "name": n, "supercategory": "thing"} for n, i in CATEGORY_IDS.items()]
    instances = list(chain.from_iterable(r.instances for r in rows))
    captions = list(chain.from_iterable(r.captions for r in rows))
    people = list(chain.from_iterable(r.people for r in rows))
    base = {"images": images, "categories": categories}
    annotations = root / "annotations"
    _dump(annotations / f"instances_{split}.json", {**base, "annotations": instances})
    _dump(annotations / f"captions_{split}.json", {"images": images, "annotations": captions})
    _dump(annotations / f"person_keypoints_{split}.json", {**base, "annotations": people})
    _dump_lines(root / f"refs/refs_{split}.jsonl", chain.from_iterable(r.refs for r in rows))
    _dump_lines(root / f"vqa/vqa_{split}.jsonl", chain.from_iterable(r.vqa for r in rows))
    _dump(root / f"interactive/coco_interactive_{split}.json", [r.interactive for r in rows])
    _dump_lines(root / f"gcg/flickr_boxes_{split}.jsonl", (r.flickr for r in rows))
    _dump(root / f"gcg/open_psg_{split}.json", [r.open_psg for r in rows])
    _dump(root / f"vg/region_descriptions_{split}.json", [r.visual_genome for r in rows])
    _dump(root / f"vg/image_data_{split}.json", [_addressed(image, split) for image in images])


def _addressed(image: dict[str, Any], split: str) -> dict[str, Any]:
    """A row of Visual Genome's list of pictures, which knows them by their address."""
    size = {"width": image["width"], "height": image["height"]}
    return {"image_id": image["id"], "url": f"images/{split}/{image['file_name']}", **size}


def _dump(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _dump_lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
