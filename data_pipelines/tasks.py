"""The task types of VT-Instruct: command, template bank, prompt kinds and output unit of each."""

from dataclasses import dataclass

from data_pipelines.records import PromptKind
from refvlm_jax.trp.tokens import Unit


@dataclass(frozen=True)
class TaskSpec:
    """One task type."""

    id: str
    name: str
    command: str
    """Key of `refvlm_jax.trp.commands.COMMANDS`."""
    bank: str
    """Template bank of its questions; empty where only a source's own words ask."""
    unit: Unit = Unit.NONE
    prompts: tuple[PromptKind, ...] = ()
    """Kinds of region prompt the question may show; empty for none."""


_POINT, _BOX, _SCRIBBLE, _MASK = PromptKind
_DRAWN = (_POINT, _SCRIBBLE, _MASK)

TASKS: dict[str, TaskSpec] = {
    task.id: task
    for task in (
        TaskSpec("T01", "image caption", "vqa", "image_cap"),
        TaskSpec("T02", "detailed caption", "vqa", "image_detail"),
        TaskSpec("T03", "visual question answering", "vqa", "vqa"),
        TaskSpec("T04", "question answering with reasons", "vqa", "vqa_reason"),
        TaskSpec("T05", "open dialogue", "vqa", ""),
        TaskSpec("T06", "region caption from a box", "vqa", "region_cap", prompts=(_BOX,)),
        TaskSpec("T07", "region caption from a mask", "vqa", "region_cap", prompts=(_MASK,)),
        TaskSpec("T08", "region caption from a point", "vqa", "region_cap", prompts=(_POINT,)),
        TaskSpec("T09", "region caption from a scribble", "vqa", "region_cap", prompts=(_SCRIBBLE,)),
        TaskSpec("T10", "question about a box", "vqa", "region_vqa", prompts=(_BOX,)),
        TaskSpec("T11", "question about a point", "vqa", "region_vqa", prompts=(_POINT,)),
        TaskSpec("T12", "dialogue about masks", "vqa", "region_detail", prompts=(_MASK,)),
        TaskSpec("T13", "detection", "detection", "det", Unit.BOX),
        TaskSpec("T14", "segmentation by category", "segmentation", "seg", Unit.MASK),
        TaskSpec("T15", "detection of a class", "grounding_detection", "cond_det", Unit.BOX),
        TaskSpec("T16", "segmentation of a class", "grounding_segmentation", "cond_seg", Unit.MASK),
        TaskSpec("T17", "referring comprehension", "grounding_detection", "rec", Unit.BOX),
        TaskSpec("T18", "referring segmentation", "grounding_segmentation", "res", Unit.MASK),
        TaskSpec("T19", "grounded caption with boxes", "gcg_detection", "gcg_box", Unit.BOX),
        TaskSpec("T20", "grounded caption with masks", "gcg_segmentation", "gcg_mask", Unit.MASK),
        TaskSpec("T21", "interactive box", "grounding_detection", "region_det", Unit.BOX, _DRAWN),
        TaskSpec(
            "T22", "interactive mask", "grounding_segmentation", "region_seg", Unit.MASK,
            (_POINT, _BOX, _SCRIBBLE, _MASK),
        ),
        TaskSpec("T23", "keypoint detection", "keypoint_detection", "keypoints", Unit.KEYPOINT),
        TaskSpec(
            "T24", "region keypoints", "grounding_keypoints", "region_keypoints", Unit.KEYPOINT,
            (_BOX, _MASK),
        ),
        TaskSpec("T25", "monocular depth", "depth", "depth", Unit.DEPTH),
        # Forms beside the twenty-five.
        TaskSpec("X1", "reasons with boxes", "gcg_detection", "vqa_box", Unit.BOX, (_BOX,)),
        # No decoder reads points: their references train the text alone.
        TaskSpec("X2", "reasons with points", "gcg_detection", "vqa_point", Unit.POINT),
        TaskSpec(
            "X3", "choice among boxes", "grounding_detection", "pointing", Unit.BOX, (_BOX,)
        ),
        TaskSpec("X4", "answer, then reason", "gcg_detection", "vqa_why", Unit.BOX, (_BOX,)),
    )
}  # fmt: skip
