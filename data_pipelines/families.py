"""The converters by name, and what each takes from a recipe."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data_pipelines.recipes import BuildRecipe, SourceEntry
from data_pipelines.records import Dialog
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

Converter = Callable[[Drops], Iterator[Dialog]]

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


def converter_of(entry: SourceEntry, recipe: BuildRecipe) -> Converter:
    """The dialogues of one entry, one by one; SourceError for an unknown family."""
    if entry.family not in FAMILIES:
        raise SourceError(f"unknown source family {entry.family!r}; known: {sorted(FAMILIES)}")
    folder = recipe.folder if entry.folder is None else entry.folder
    instances = recipe.instances if entry.instances is None else entry.instances
    given: dict[str, Any] = dict(entry.options)
    if (need := _NEEDS.get(entry.family)) is not None:
        given[need] = _listed(instances, Path(recipe.image_root) / folder)[need]
    place = (Path(entry.file), entry.split or recipe.split, folder)
    convert = partial(FAMILIES[entry.family], *place, **given)
    if (tasks := entry.tasks) is None:
        return lambda drops: convert(drops=drops)
    return lambda drops: (d for d in convert(drops=drops) if d.task_id in tasks)


def _listed(instances: str, pictures: Path) -> dict[str, Any]:
    """Sizes and names of a COCO file; damaged rows are named by the converter of the file."""
    content: dict[str, Any] = {"images": [], "categories": []}
    if instances:
        content = read_json(Path(instances), keys=("images", "categories"))
    images = _complete(content["images"], "file_name", "width", "height")
    known = {name: (width, height) for name, width, height in images}
    return {
        "sizes": PictureSizes(pictures, known),
        "categories": dict(_complete(content["categories"], "id", "name")),
    }


def _complete(rows: list[Any], *keys: str) -> list[tuple[Any, ...]]:
    """The named values of every row that has them all, as plain numbers and strings."""
    found = [tuple(row.get(k) for k in keys) for row in rows if isinstance(row, dict)]
    return [values for values in found if all(isinstance(v, int | str) for v in values)]
