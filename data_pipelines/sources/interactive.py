"""COCO-interactive (PSALM layout): regions drawn by hand to boxes, masks and names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.records import Dialog, MediaRef, Prompt, PromptKind, Region, Span, Turn
from data_pipelines.sources.base import (
    Drops,
    RecordError,
    box_of,
    clean_name,
    mask_of,
    need,
    picture,
    read_list,
)
from data_pipelines.sources.base import region as annotated_region
from data_pipelines.tasks import TASKS


def regions(
    path: Path, split: str, folder: str, drops: Drops, categories: dict[int, str]
) -> Iterator[Dialog]:
    """T21, T22, T08 and T09 of every annotation, one dialogue for each kind the task allows."""
    for place, item in enumerate(read_list(path)):
        annotations: list[dict[str, Any]] = []
        with drops.guard(f"{path}, item {place}"):
            annotations = list(need(item, "anns")[0])
        for annotation in annotations:
            found: list[Dialog] = []
            with drops.guard(f"{path}, annotation {_number(annotation, place)}"):
                found = list(_dialogs(item, annotation, split, folder, categories))
            yield from found


def _number(annotation: Any, place: int) -> str:
    known = isinstance(annotation, dict) and "id" in annotation
    return str(annotation["id"]) if known else f"of item {place}"


def _dialogs(
    item: dict[str, Any],
    annotation: dict[str, Any],
    split: str,
    folder: str,
    categories: dict[int, str],
) -> Iterator[Dialog]:
    name, info = need(item, "image", "image_info")
    width, height = need(info, "width", "height")
    image = picture(name, folder, width, height)
    need(annotation, "id")
    if (category := categories.get(annotation.get("category_id", -1))) is None:
        raise RecordError(
            "V01", f"unknown category id {annotation.get('category_id')}; use COCO's categories"
        )
    target = annotated_region(annotation, image, clean_name(category))
    for task in ("T21", "T22", "T08", "T09"):
        for kind in prompt_kinds(task, annotation["id"], split):
            prompt = _prompt(annotation, kind, image)
            yield Dialog(
                uid=f"interactive/{split}/{annotation['id']}/{task}-{kind.name.lower()}",
                source="interactive",
                split=split,
                task_id=task,
                image=image,
                regions=[target, prompt] if TASKS[task].unit else [prompt],
                turns=[_turn(task, kind, category)],
                provenance={"image_id": item.get("image_id", 0), "ann_id": annotation["id"]},
            )


def prompt_kinds(task: str, number: int, split: str) -> tuple[PromptKind, ...]:
    """Prompt kinds an annotation is shown with: one in training, in turn, and all in evaluation."""
    kinds = TASKS[task].prompts
    return (kinds[number % len(kinds)],) if split == "train" else kinds


def _prompt(annotation: dict[str, Any], kind: PromptKind, image: MediaRef) -> Region:
    (drawn,) = need(annotation, f"{kind.name.lower()}_visual_prompt_mask")
    mask = mask_of(drawn, image, kind.name.lower())
    box = box_of(mask)
    point = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) if kind is PromptKind.POINT else None
    return Region(box=box, point=point, mask=mask)


def _turn(task: str, kind: PromptKind, category: str) -> Turn:
    spec = TASKS[task]
    if not spec.unit:
        prompts = [Prompt(region=0, kind=kind)]
        return Turn(task_name=spec.command, bank=spec.bank, answer=category, prompts=prompts)
    span = Span(start=0, end=len(category), unit=spec.unit, targets=[0])
    return Turn(
        task_name=spec.command,
        bank=spec.bank,
        answer=f"{category}.",
        prompts=[Prompt(region=1, kind=kind)],
        spans=[span],
    )


_SINGLE_ORDER = (PromptKind.BOX, PromptKind.POINT, PromptKind.SCRIBBLE, PromptKind.MASK)


def single(path: Path, split: str, folder: str, drops: Drops) -> Iterator[Dialog]:
    """T22 of every item {image, prompt: [box, point, scribble, mask], target, category_name}.

    One dialogue a kind of prompt in evaluation, and one in all, kinds in turn, in training.
    """
    for number, item in enumerate(read_list(path)):
        found: list[Dialog] = []
        with drops.guard(f"{path}, item {number}"):
            found = list(_single_dialogs(item, number, split, folder))
        yield from found


def _single_dialogs(item: dict[str, Any], number: int, split: str, folder: str) -> Iterator[Dialog]:
    name, drawn, target, category = need(item, "image", "prompt", "target", "category_name")
    if len(drawn) != len(_SINGLE_ORDER):
        raise RecordError("V13", f"{len(drawn)} prompts, expected box, point, scribble and mask")
    height, width = need(target, "size")[0]
    image, category = picture(name, folder, width, height), clean_name(category)
    wanted = mask_of(target, image)
    aim = Region(category=category, box=box_of(wanted), mask=wanted)
    for kind in prompt_kinds("T22", number, split):
        row = {f"{kind.name.lower()}_visual_prompt_mask": drawn[_SINGLE_ORDER.index(kind)]}
        yield Dialog(
            uid=f"interactive_single/{split}/{number}/T22-{kind.name.lower()}",
            source="interactive_single",
            split=split,
            task_id="T22",
            image=image,
            regions=[aim, _prompt(row, kind, image)],
            turns=[_turn("T22", kind, category)],
        )
