"""From native annotation files to validated shards, in one call."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from data_pipelines.depths import depth_problem
from data_pipelines.images import ImageError, load_image
from data_pipelines.records import Dialog, encode
from data_pipelines.shapes_world.formats import FOLDER
from data_pipelines.shards import ShardInfo, ShardWriter, read_manifest, write_manifest
from data_pipelines.sources import (
    clevr,
    coco,
    depth,
    explained,
    flickr30k,
    gqa,
    grit,
    grounded,
    interactive,
    keypoints,
    link_context,
    llava,
    lvis,
    narratives,
    panoptic,
    pointing,
    refcoco,
    refcoco_native,
    region_chats,
    semantic,
    vcr,
    visual_genome,
    vqa,
    vqa_native,
)
from data_pipelines.sources.base import Drops, SourceError, read_json
from data_pipelines.sources.sizes import PictureSizes
from data_pipelines.validate import repair, validate

Converter = Callable[[Drops], Iterator[Dialog]]


@dataclass(frozen=True)
class SourceEntry:
    """One native file and how to read it."""

    family: str
    """Key of FAMILIES."""
    file: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BuildRecipe:
    """What a dataset is made of."""

    split: str
    image_root: str
    folder: str
    """Folder of the pictures under the image root."""
    instances: str
    """COCO instances file: sizes and category names for sources without their own; may be empty."""
    entries: tuple[SourceEntry, ...]

    @property
    def hash(self) -> str:
        """Digest of everything that decides the result but the files' contents."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass
class BuildReport:
    """What came out."""

    counts: dict[str, int]
    """Dialogues by task."""
    dropped: dict[str, int]
    """Records by validation code."""


def shapes_world_recipe(world: Path, split: str) -> BuildRecipe:
    """The files of a rendered shapes world."""
    world = Path(world).resolve()
    at = lambda name: str(world / name)  # noqa: E731
    return BuildRecipe(
        split=split,
        image_root=str(world),
        folder=f"images/{split}",
        instances=at(f"annotations/instances_{split}.json"),
        entries=(
            SourceEntry("coco_instances", at(f"annotations/instances_{split}.json")),
            SourceEntry("coco_captions", at(f"annotations/captions_{split}.json")),
            # The expression as phrase: a small model then learns one skill, from phrase to place,
            # in referring and in grounded answers alike.
            SourceEntry("expressions", at(f"refs/refs_{split}.jsonl"), {"phrase": "expression"}),
            SourceEntry("vqa", at(f"vqa/vqa_{split}.jsonl")),
            SourceEntry("interactive", at(f"interactive/coco_interactive_{split}.json")),
            SourceEntry("flickr_boxes", at(f"gcg/flickr_boxes_{split}.jsonl")),
            SourceEntry("open_psg", at(f"gcg/open_psg_{split}.json")),
            SourceEntry("coco_keypoints", at(f"annotations/person_keypoints_{split}.json")),
            SourceEntry(
                "depth_maps",
                at(f"annotations/instances_{split}.json"),
                {"depth_folder": f"depth/{split}", "scale": 0.001},
            ),
        ),
    )


def shapes_all_recipe(world: Path, split: str) -> BuildRecipe:
    """A rendered shapes world in every format it is written in, and so with every task type."""
    recipe = shapes_world_recipe(world, split)
    at = lambda name: str(Path(world).resolve() / FOLDER / split / name)  # noqa: E731
    more = (
        SourceEntry("gqa", at(f"gqa/{split}_balanced_questions.json")),
        SourceEntry("clevr", at(f"clevr/questions/CLEVR_{split}_questions.json")),
        SourceEntry("point_qa", at(f"point_qa/pointQA_local_{split}.jsonl")),
        SourceEntry("vcr", at(f"vcr/{split}.jsonl")),
        SourceEntry("llava_mix", at("llava/llava_v1_5_mix665k.json")),
        SourceEntry("osprey", at("osprey/osprey_detail.json"), {"kind": "detail"}),
        SourceEntry("visual7w", at("visual7w/dataset_v7w_pointing.json")),
        SourceEntry("grit", at("grit")),
        SourceEntry("grand", at("grand")),
    )
    return replace(recipe, entries=recipe.entries + more)


def coco_recipe(root: Path, split: str) -> BuildRecipe:
    """COCO as published: pictures and the instances, captions and keypoints of {split}2017."""
    root = Path(root).resolve()
    instances = str(root / f"annotations/instances_{split}2017.json")
    return BuildRecipe(
        split=split,
        image_root=str(root),
        folder=f"{split}2017",
        instances=instances,
        entries=(
            SourceEntry("coco_instances", instances),
            SourceEntry("coco_captions", str(root / f"annotations/captions_{split}2017.json")),
            SourceEntry(
                "coco_keypoints", str(root / f"annotations/person_keypoints_{split}2017.json")
            ),
        ),
    )


def refcoco_recipe(root: Path, split: str) -> BuildRecipe:
    """RefCOCO rows as {split}.jsonl beside train2014/ and COCO's 2014 instances."""
    root = Path(root).resolve()
    return BuildRecipe(
        split=split,
        image_root=str(root),
        folder="train2014",
        instances=str(root / "annotations/instances_train2014.json"),
        entries=(SourceEntry("expressions", str(root / f"{split}.jsonl")),),
    )


FAMILIES: dict[str, Callable[..., Iterator[Dialog]]] = {
    "coco_instances": coco.instances,
    "coco_captions": coco.captions,
    "coco_panoptic": panoptic.segments,
    "coco_rem": lvis.coco_rem,
    "lvis": lvis.lvis,
    "visual_genome": visual_genome.regions,
    "flickr30k": flickr30k.entities,
    "expressions": refcoco.expressions,
    "refcoco": refcoco_native.native,
    "vqa": vqa.questions,
    "vqa_v2": vqa_native.vqa_v2,
    "okvqa": vqa_native.okvqa,
    "pope": vqa_native.pope,
    "vqa_e": explained.vqa_e,
    "vqa_x": explained.vqa_x,
    "gqa": gqa.gqa,
    "clevr": clevr.questions,
    "visual7w": pointing.visual7w,
    "point_qa": pointing.point_qa,
    "vcr": vcr.vcr,
    "llava_mix": llava.mix,
    "llava_captions": llava.captions,
    "osprey": region_chats.osprey,
    "llava_grounding": region_chats.llava_grounding,
    "grit": grit.grit,
    "grand": grit.grand,
    "png": narratives.narratives,
    "flickr_gcg": narratives.flickr_gcg,
    "refcocog_gcg": narratives.refcocog_gcg,
    "gcg_eval": narratives.gcg_eval,
    "ade20k": coco.ade20k,
    "cityscapes": semantic.cityscapes,
    "pascal_voc": semantic.pascal_voc,
    "label_maps": semantic.label_maps,
    "interactive_single": interactive.single,
    "nocaps": coco.nocaps,
    "imagenet_classes": link_context.imagenet,
    "isekai": link_context.isekai,
    "interactive": interactive.regions,
    "flickr_boxes": grounded.flickr_boxes,
    "open_psg": grounded.open_psg,
    "coco_keypoints": keypoints.people,
    "depth_maps": depth.depth_maps,
}
"""Converters by name."""
_SIZED = (
    "vqa",
    "flickr_boxes",
    "vqa_v2",
    "okvqa",
    "pope",
    "vqa_e",
    "vqa_x",
    "gqa",
    "clevr",
    "visual7w",
    "point_qa",
    "llava_mix",
    "llava_captions",
    "refcocog_gcg",
    "gcg_eval",
    "imagenet_classes",
    "isekai",
)
_NEEDS = dict.fromkeys(_SIZED, "sizes") | {"interactive": "categories"}
"""What a converter takes from the recipe's instances file besides its own."""


def _converters(recipe: BuildRecipe) -> Iterator[tuple[SourceEntry, Converter]]:
    content = _instances(recipe)
    # Damaged rows are named by the converter that reads this file for its own sake.
    images = _complete(content["images"], "file_name", "width", "height")
    known = {name: (width, height) for name, width, height in images}
    lists: dict[str, Any] = {
        "sizes": PictureSizes(Path(recipe.image_root) / recipe.folder, known),
        "categories": dict(_complete(content["categories"], "id", "name")),
    }
    for entry in recipe.entries:
        if entry.family not in FAMILIES:
            raise SourceError(f"unknown source family {entry.family!r}; known: {sorted(FAMILIES)}")
        needed = (
            {_NEEDS[entry.family]: lists[_NEEDS[entry.family]]} if entry.family in _NEEDS else {}
        )
        place = (Path(entry.file), recipe.split, recipe.folder)
        yield entry, _with_drops(partial(FAMILIES[entry.family], *place, **needed, **entry.options))


def _instances(recipe: BuildRecipe) -> dict[str, Any]:
    if not recipe.instances:
        return {"images": [], "categories": []}
    return read_json(Path(recipe.instances), keys=("images", "categories"))


def _complete(rows: list[Any], *keys: str) -> list[tuple[Any, ...]]:
    """The named values of every row that has them all, as plain numbers and strings."""
    found = [tuple(row.get(k) for k in keys) for row in rows if isinstance(row, dict)]
    return [values for values in found if all(isinstance(v, int | str) for v in values)]


def _with_drops(convert: Callable[..., Iterator[Dialog]]) -> Converter:
    return lambda drops: convert(drops=drops)


def build(
    recipe: BuildRecipe,
    out: Path,
    *,
    limit: int | None = None,
    workers: int = 2,
    progress: bool = True,
) -> BuildReport:
    """Converts, validates and writes every source of a recipe; equal finished work is kept.

    Args:
      limit: dialogues a source, for a first look.

    Raises:
      SourceError: a native file is missing or of another kind, or nothing survived.
    """
    out, key = Path(out), f"{recipe.hash}-{limit}"
    if (out / "manifest.json").is_file():
        manifest = read_manifest(out)
        if manifest.get("recipe") == key:
            print(f"{out}: built already")
            return BuildReport(manifest["counts"], manifest["dropped"])
    drops, good = Drops(), _Pictures(Path(recipe.image_root), workers)
    stores: dict[str, list[ShardInfo]] = {}
    counts: Counter[str] = Counter()
    uids: set[str] = set()
    for entry, convert in _converters(recipe):
        dialogs = list(islice(_unique(convert(drops), uids, drops), limit))
        note = f"{recipe.split}: {entry.family}"
        shown = track(dialogs, description=note, disable=not progress)
        kept = _checked(shown, good, drops)
        stem = f"dialog-{entry.family}"
        with ShardWriter(out, stem) as writer:
            for dialog in kept:
                writer.write(encode(dialog))
                counts[dialog.task_id] += 1
        stores[stem] = writer.shards
    if not counts:
        raise SourceError(f"{out}: no record survived; first problems: {drops.lines[:3]}")
    dropped = dict(drops.counts)
    write_manifest(
        out,
        stores=stores,
        image_root=recipe.image_root,
        counts=dict(sorted(counts.items())),
        extra={"recipe": key, "dropped": dropped},
    )
    _write_report(out, counts, drops)
    if progress:
        _show(out, counts, drops)
    return BuildReport(dict(counts), dropped)


def _unique(dialogs: Iterator[Dialog], uids: set[str], drops: Drops) -> Iterator[Dialog]:
    for dialog in dialogs:
        if dialog.uid in uids:
            drops.add("V01", dialog.uid, "this uid occurs twice; native ids must be unique")
            continue
        uids.add(dialog.uid)
        yield dialog


class _Pictures:
    """Decodes every picture once and remembers which ones are unusable."""

    def __init__(self, root: Path, workers: int):
        self.root, self.workers = root, workers
        self._bad: dict[str, str] = {}
        self._seen: set[str] = set()

    def problem(self, dialog: Dialog) -> str | None:
        """Why the picture of a dialogue cannot be used, or None."""
        image = dialog.image
        if image is None:
            return None
        if image.path not in self._seen:
            self._seen.add(image.path)
            try:
                load_image(image, self.root)
            except ImageError as error:
                self._bad[image.path] = str(error)
        return self._bad.get(image.path)


def _checked(dialogs: Iterable[Dialog], pictures: _Pictures, drops: Drops) -> Iterator[Dialog]:
    for dialog in dialogs:
        if message := pictures.problem(dialog):
            drops.add("V02", dialog.uid, message)
            continue
        fixed = repair(dialog)
        if errors := [f for f in validate(fixed) if f.level == "E"]:
            drops.add(errors[0].code, dialog.uid, errors[0].message)
            continue
        if message := _depth_problem(fixed, pictures.root):
            drops.add("V09", dialog.uid, message)
            continue
        yield fixed


def _depth_problem(dialog: Dialog, root: Path) -> str | None:
    """Why a depth map of a dialogue cannot be used, or None."""
    if dialog.image is None:
        return None
    maps = (region.depth for region in dialog.regions if region.depth is not None)
    problems = (depth_problem(found, dialog.image, root) for found in maps)
    return next((problem for problem in problems if problem), None)


def _write_report(out: Path, counts: Counter[str], drops: Drops) -> None:
    content = {
        "counts": dict(counts),
        "dropped": dict(drops.counts),
        "lines": drops.lines,
    }
    temporary = out / ".build_report.tmp"
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, out / "build_report.json")


def _show(out: Path, counts: Counter[str], drops: Drops) -> None:
    table = Table("task", "dialogues", title=str(out))
    for task, number in sorted(counts.items()):
        table.add_row(task, str(number))
    for code, number in sorted(drops.counts.items()):
        table.add_row(f"dropped {code}", str(number))
    Console().print(table)
