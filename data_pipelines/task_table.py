"""What every task type is made of, and how much of it a dataset holds."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from data_pipelines import templates
from data_pipelines.shards import read_manifest
from data_pipelines.tasks import TASKS, TaskSpec
from refvlm_jax.trp.commands import COMMANDS
from refvlm_jax.trp.tokens import Unit

FAMILY_TASKS: dict[str, tuple[str, ...]] = {
    "coco_instances": ("T13", "T14"),
    "coco_captions": ("T01",),
    "coco_panoptic": ("T14",),
    "coco_rem": ("T13", "T14"),
    "lvis": ("T13", "T14"),
    "visual_genome": ("T06", "T17"),
    "flickr30k": ("T01", "T19"),
    "expressions": ("T06", "T07", "T17", "T18"),
    "refcoco": ("T06", "T07", "T17", "T18"),
    "vqa": ("T03",),
    "vqa_v2": ("T03",),
    "okvqa": ("T03",),
    "pope": ("T03",),
    "vqa_e": ("T04",),
    "vqa_x": ("T04",),
    "gqa": ("T03", "T04", "X1"),
    "clevr": ("T03", "T04", "X2"),
    "visual7w": ("X3",),
    "point_qa": ("T10", "T11"),
    "vcr": ("T04", "T10", "X1", "X4"),
    "llava_mix": ("T05",),
    "llava_captions": ("T01",),
    "osprey": ("T12",),
    "llava_grounding": ("T12", "T20"),
    "grit": ("T01", "T06", "T13", "T15", "T17", "T19"),
    "grand": ("T01", "T02", "T06", "T07", "T13", "T14", "T15", "T16", "T19", "T20"),
    "png": ("T01", "T20"),
    "flickr_gcg": ("T20",),
    "refcocog_gcg": ("T20",),
    "gcg_eval": ("T20",),
    "ade20k": ("T13", "T14"),
    "cityscapes": ("T14", "T16"),
    "pascal_voc": ("T16",),
    "label_maps": ("T16",),
    "interactive_single": ("T22",),
    "nocaps": ("T01",),
    # Link-context learning: questions until an episode is put together from them.
    "imagenet_classes": ("T03",),
    "isekai": ("T03",),
    "interactive": ("T08", "T09", "T21", "T22"),
    "flickr_boxes": ("T19",),
    "open_psg": ("T20",),
    "coco_keypoints": ("T23", "T24"),
    "depth_maps": ("T25",),
}
"""Task types that the converters of `families.FAMILIES` give."""


@dataclass(frozen=True)
class TaskRow:
    """One task type in words."""

    task: TaskSpec
    inputs: str
    """What the question shows: the picture, and kinds of region prompts."""
    outputs: str
    """What the answer is made of."""
    templates: tuple[int, int]
    """Questions in the `ref` and in the `coord` register; none where a source asks in its own words,
    and none in `coord` where the answer has no form in coordinates."""
    sources: tuple[str, ...]
    """Families that give it, in alphabetical order."""
    count: int | None
    """Dialogues of a built dataset; None without one."""


def task_rows(built: Path | None = None) -> list[TaskRow]:
    """All task types; with a built dataset, how many dialogues of each it holds.

    Raises:
      ShardError: the folder holds no dataset.
    """
    counts = None if built is None else read_manifest(built)["counts"]
    sources = _sources()
    return [_row(task, sources[task.id], counts) for task in TASKS.values()]


def _sources() -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for family in sorted(FAMILY_TASKS):
        for task in FAMILY_TASKS[family]:
            found[task].append(family)
    return found


def _row(task: TaskSpec, sources: list[str], counts: Mapping[str, int] | None) -> TaskRow:
    kinds = " or ".join(kind.name.lower() for kind in task.prompts)
    elements = [*COMMANDS[task.command].elements]
    if task.unit is not Unit.NONE:
        elements.append(task.unit.text)
    return TaskRow(
        task=task,
        inputs=f"picture, {kinds}" if kinds else "picture",
        outputs=", ".join(elements),
        templates=(_many(task, "ref"), _many(task, "coord")),
        sources=tuple(sources),
        count=None if counts is None else counts.get(task.id, 0),
    )


def _many(task: TaskSpec, register: str) -> int:
    written = register == "ref" or task.unit in (Unit.NONE, Unit.BOX, Unit.POINT)
    return len(templates.sentences(task.bank, register)) if task.bank and written else 0


def as_table(rows: list[TaskRow]) -> Table:
    """The rows as `refvlm data tasks` prints them; counts only of a built dataset."""
    table = Table("id", "task", "command", "inputs", "outputs", "templates", "sources")
    counted = any(row.count is not None for row in rows)
    if counted:
        table.add_column("dialogues", justify="right")
    for row in rows:
        asked = " + ".join(str(n) for n in row.templates if n) or "source's own"
        cells = [row.task.id, row.task.name, row.task.command, row.inputs, row.outputs, asked]
        cells.append(" ".join(row.sources))
        table.add_row(*cells, *([str(row.count)] if counted else []))
    return table
