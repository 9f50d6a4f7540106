"""Rows put behind one another in one row, each a segment that sees nothing of the others."""

from collections.abc import Sequence

import numpy as np

from data_pipelines.pack_sizes import KINDS
from data_pipelines.rows import Row
from refvlm_jax.batch import NO_SLOT, TEXT, BatchSpec, empty_row

_TARGETS = {
    "mask_slot": ("masks",), "keypoint_slot": ("keypoints",),
    "depth_slot": ("depth", "depth_relative"),
}  # fmt: skip

_GROUPS = KINDS.index("groups")


def room_of(row: Row) -> list[int]:
    """What a row uses, by `pack_sizes.KINDS`."""
    counts = [row[name].sum() for name in ("image_valid", "prompt_valid", "ref_valid")]
    groups, slots = row["ref_group"].max(initial=-1) + 1, [_slots(row, name) for name in _TARGETS]
    return [int(n) for n in ((row["segment_ids"] > 0).sum(), *counts, groups, *slots)]


def within(row: Row, room: Sequence[int]) -> bool:
    """Whether a row uses no more than `room`. Phrase groups, which rows do not limit, are free."""
    used = room_of(row)
    return all(
        have <= most for k, (have, most) in enumerate(zip(used, room, strict=True)) if k != _GROUPS
    )


def join_rows(rows: Sequence[Row], spec: BatchSpec) -> Row:
    """One row with the content of `rows`, segments 1, 2, ... in their order.

    Positions start anew in every segment. Images, prompts, references, phrase groups and targets
    are numbered on. `sample_id` is that of an empty row.

    Raises:
      ValueError: together they exceed a size of `spec`.
    """
    joined = empty_row(spec)
    used = [0] * 8
    for segment, row in enumerate(rows, 1):
        own = room_of(row)
        limits = (spec.seq_len, spec.images, spec.prompts, spec.refs, None, *_limits(spec))
        for have, more, most in zip(used, own, limits, strict=True):
            if most is not None and have + more > most:
                raise ValueError(f"rows to join use {have + more} of {most} places; pack fewer")
        _append(joined, row, used, own, segment, spec)
        used = [a + b for a, b in zip(used, own, strict=True)]
    return joined


def _limits(spec: BatchSpec) -> tuple[int, int, int]:
    return spec.mask_refs, spec.kpt_refs, spec.depth_refs


def _append(
    joined: Row, row: Row, used: Sequence[int], own: Sequence[int], segment: int, spec: BatchSpec
) -> None:
    start, image, prompt, ref, group = used[:5]
    length, images, prompts, refs = own[:4]
    to = slice(start, start + length)
    for name in ("tokens", "labels", "positions", "dialog_ids"):
        joined[name][to] = row[name][:length]
    joined["segment_ids"][to] = segment
    index, patches = row["visual_index"][:length], spec.images * spec.image_tokens
    moved = index + np.where(
        index < patches, image * spec.image_tokens, prompt * spec.prompt_tokens
    )
    joined["visual_index"][to] = np.where(index == TEXT, TEXT, moved)
    for name in ("images", "image_valid", "pixel_box"):
        joined[name][image : image + images] = row[name][:images]
    for name in ("prompt_masks", "prompt_valid"):
        joined[name][prompt : prompt + prompts] = row[name][:prompts]
    joined["prompt_image"][prompt : prompt + prompts] = row["prompt_image"][:prompts] + image
    for name, shift in (("ref_pos", start), ("ref_group", group), ("ref_image", image)):
        joined[name][ref : ref + refs] = row[name][:refs] + shift
    for name in ("ref_unit", "ref_valid", "boxes"):
        joined[name][ref : ref + refs] = row[name][:refs]
    for (slot, arrays), first, count in zip(_TARGETS.items(), used[5:], own[5:], strict=True):
        places = row[slot][:refs]
        joined[slot][ref : ref + refs] = np.where(places == NO_SLOT, NO_SLOT, places + first)
        for name in arrays:
            joined[name][first : first + count] = row[name][:count]


def _slots(row: Row, name: str) -> int:
    return int(row[name].max(initial=NO_SLOT)) + 1
