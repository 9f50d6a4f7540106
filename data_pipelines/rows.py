"""A row of the static batch: first a draft of turns, then arrays."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from data_pipelines.depths import depth_target, load_depth
from data_pipelines.options import EncodeError
from data_pipelines.rasterise import prompt_mask, target_mask
from data_pipelines.records import MediaRef, PromptKind, Region
from data_pipelines.squares import Squares
from data_pipelines.turns import EncodedAnswer, EncodedPrompt, Reference
from refvlm_jax.batch import TEXT, BatchSpec, empty_row
from refvlm_jax.geometry import PaddedSquare
from refvlm_jax.trp.tokens import IGNORE_ID, Unit

Row = dict[str, np.ndarray]
"""Arrays of `refvlm_jax.batch.Batch` by name, without the batch axis."""
_TARGETS = {Unit.MASK: "masks", Unit.KEYPOINT: "keypoints", Unit.DEPTH: "depth"}
_SLOTS = {Unit.MASK: "mask_slot", Unit.KEYPOINT: "keypoint_slot", Unit.DEPTH: "depth_slot"}
T = TypeVar("T")


@dataclass
class Draft:
    """A row while turns are appended."""

    spec: BatchSpec
    tokens: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    visual: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    dialogs: list[int] = field(default_factory=list)
    shared: int = 0
    """Positions of the opening that every dialogue sees."""
    prompts: list[tuple[Region, PromptKind]] = field(default_factory=list)
    refs: list[Reference] = field(default_factory=list)
    slots: Counter[Unit] = field(default_factory=Counter)
    """Target slots that the references want, by unit."""
    groups: int = 0

    @property
    def limits(self) -> str:
        """The row's sizes, for messages."""
        spec = self.spec
        return f"{spec.seq_len} positions, {spec.prompts} prompts or {spec.refs} references"

    def fits(self, prompt: EncodedPrompt, answer: EncodedAnswer) -> bool:
        """Whether the turn can be appended.

        Target slots bind later turns only: a first turn with more masks is worth learning as text.
        """
        spec, more = self.spec, answer.slots
        room = {
            Unit.MASK: spec.mask_refs, Unit.KEYPOINT: spec.kpt_refs, Unit.DEPTH: spec.depth_refs
        }  # fmt: skip
        return (
            len(self.tokens) + len(prompt.tokens) + len(answer.tokens) <= spec.seq_len
            and len(self.prompts) + len(prompt.regions) <= spec.prompts
            and len(self.refs) + len(answer.refs) <= spec.refs
            and (
                len(self.tokens) == self.shared
                or all(self.slots[unit] + more[unit] <= room[unit] for unit in more)
            )
        )

    def open(self, opening: EncodedPrompt) -> None:
        """Starts the row with what its dialogues share."""
        self.append(opening, EncodedAnswer([], []), supervise=False)
        self.shared = len(self.tokens)

    def append(
        self, prompt: EncodedPrompt, answer: EncodedAnswer, *, supervise: bool, dialog: int = 0
    ) -> None:
        """Appends a turn that fits.

        Args:
          dialog: its `Batch.dialog_ids`; positions of a dialogue count on from the opening.
        """
        start, length = len(self.tokens) + len(prompt.tokens), len(prompt.tokens + answer.tokens)
        if not self.tokens:
            begin = 0
        elif self.dialogs[-1] == dialog:
            begin = self.positions[-1] + 1
        else:
            begin = self.shared
        self.positions += range(begin, begin + length)
        self.dialogs += [dialog] * length
        self.tokens += prompt.tokens + answer.tokens
        self.visual += prompt.visual + [TEXT] * len(answer.tokens)
        self.labels += [IGNORE_ID] * len(prompt.tokens)
        self.labels += answer.labels if supervise else [IGNORE_ID] * len(answer.tokens)
        self.prompts += prompt.regions
        self.refs += [
            replace(ref, offset=start + ref.offset, group=self.groups + ref.group)
            for ref in answer.refs
        ]
        self.slots += answer.slots
        self.groups = self.refs[-1].group + 1 if self.refs else 0


def fill(
    draft: Draft, image: MediaRef | None, squares: Squares, uid: str, counts: Counter[str]
) -> Row:
    """The arrays of a finished draft.

    Args:
      draft: the row's turns.
      image: its picture.
      squares: reads the picture; depth maps lie under the same root.
      uid: names the dialogue in errors.
      counts: receives `masks_without_slot`, `masks_vanished`, and the same of other targets.

    Raises:
      EncodeError: a region lacks what it is shown or learned as.
      ImageError: the picture cannot be read.
    """
    row, length = empty_row(draft.spec), len(draft.tokens)
    row["tokens"][:length] = draft.tokens
    row["labels"][:length] = draft.labels
    row["visual_index"][:length] = draft.visual
    row["positions"][:length] = draft.positions
    row["dialog_ids"][:length] = draft.dialogs
    row["segment_ids"][:length] = 1
    if image is not None:
        _fill_picture(row, draft, image, squares, uid)
        _fill_references(row, draft, image, squares.root, uid, counts)
    elif draft.refs or draft.prompts:
        raise EncodeError(f"{uid}: regions without a picture; correct or drop the record")
    return row


def _fill_picture(row: Row, draft: Draft, image: MediaRef, squares: Squares, uid: str) -> None:
    spec = draft.spec
    if not spec.images:
        raise EncodeError(f"{uid}: has a picture, but rows have no image slot; raise data.images")
    row["images"][0] = squares(image)
    row["image_valid"][0] = True
    row["pixel_box"][0] = PaddedSquare(image.width, image.height).pixel_box(spec.image_size)
    for slot, (region, kind) in enumerate(draft.prompts):
        size = (image.width, image.height, spec.image_size)
        try:
            row["prompt_masks"][slot] = prompt_mask(region, kind, *size)
        except ValueError as error:
            raise EncodeError(f"{uid}: {error}; correct or drop the record") from error
        row["prompt_valid"][slot] = True


def _fill_references(
    row: Row, draft: Draft, image: MediaRef, root: Path, uid: str, counts: Counter[str]
) -> None:
    square = PaddedSquare(image.width, image.height)
    used: Counter[Unit] = Counter()
    for k, ref in enumerate(draft.refs):
        row["ref_pos"][k], row["ref_unit"][k], row["ref_group"][k] = ref.offset, ref.unit, ref.group
        row["ref_valid"][k] = True
        if ref.unit in (Unit.BOX, Unit.KEYPOINT):
            box = _need(ref.region.box, "box", uid)
            row["boxes"][k] = square.boxes_to_model(np.array(box))
        if not ref.wants_slot:
            continue
        name, slot = _TARGETS[ref.unit], used[ref.unit]
        if slot == len(row[name]):
            counts[f"{name}_without_slot"] += 1
        elif _fill_target(row, slot, ref, image, root, uid):
            row[_SLOTS[ref.unit]][k] = slot
            used[ref.unit] += 1
        else:
            counts[f"{name}_vanished"] += 1


def _fill_target(
    row: Row, slot: int, ref: Reference, image: MediaRef, root: Path, uid: str
) -> bool:
    """Writes what a reference must decode to; False when nothing of it shows on the grid."""
    square, target = PaddedSquare(image.width, image.height), row[_TARGETS[ref.unit]][slot]
    if ref.unit is Unit.KEYPOINT:
        points = np.array(_need(ref.region.keypoints or None, "keypoints", uid))
        if points.shape != target.shape:
            raise EncodeError(
                f"{uid}: a target has {len(points)} keypoints, rows hold {len(target)}; "
                "give model.keypoint.sigmas one value a point"
            )
        target[...] = square.points_to_model(points)
        return True
    if ref.unit is Unit.DEPTH:
        depth = _need(ref.region.depth, "depth map", uid)
        relative = depth.kind == "relative"
        row["depth_relative"][slot] = relative
        target[...] = depth_target(load_depth(depth, image, root), len(target), relative=relative)
        return bool(target.any())
    mask = _need(ref.region.mask, "mask", uid)
    target[...] = target_mask(mask, square.width, square.height, len(target))
    return bool(target.any())


def _need(payload: T | None, what: str, uid: str) -> T:
    if payload is None:
        raise EncodeError(f"{uid}: a target has no {what}; correct or drop the record")
    return payload
