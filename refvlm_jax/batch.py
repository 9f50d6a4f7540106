"""The static batch: the one contract between data pipelines and the model.

Every task, mixture and number of pictures shares these arrays and therefore one compiled program.
Shape legend: `B` rows, `S` sequence positions, `I` images a row, `Y X` image rows and columns,
`P` region prompts a row, `R` references a row, `Rm` `Rk` `Rd` slots a row for mask, keypoint and depth
targets, `M` side of a mask or depth target, `K` body points.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from refvlm_jax.trp.tokens import IGNORE_ID

TEXT = -1  # value of `visual_index` at a text position
NO_SLOT = -1  # value of `mask_slot`, `keypoint_slot`, `depth_slot` for a reference without a target
NO_GROUP = -1  # value of `ref_group` for an empty reference slot
_BY_POSITION = ("tokens", "labels", "positions", "segment_ids", "dialog_ids", "visual_index")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """Static sizes of a batch; the compiled program depends on nothing else."""

    seq_len: int
    """Positions of a row after images and prompts are expanded (`S`)."""
    images: int = 1
    """Images a row (`I`)."""
    image_size: int = 336
    """Side of the square picture in pixels (`Y` = `X`)."""
    image_tokens: int = 576
    """Visual tokens of one picture (`N`)."""
    prompts: int = 16
    """Region prompts a row (`P`)."""
    prompt_tokens: int = 10
    """Visual tokens of one region prompt (`T`)."""
    refs: int = 100
    """Reference slots a row (`R`)."""
    mask_refs: int = 30
    """Mask target slots a row (`Rm`)."""
    mask_size: int = 336
    """Side of a mask target in pixels (`M`)."""
    kpt_refs: int = 0
    """Keypoint target slots a row (`Rk`)."""
    kpt_points: int = 17
    """Body points of a keypoint target (`K`)."""
    depth_refs: int = 0
    """Depth target slots a row (`Rd`)."""
    depth_size: int = 336
    """Side of a depth target in pixels (`M`)."""

    def fields(self, rows: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of every array of a batch of `rows` rows."""
        b, s, i, y = rows, self.seq_len, self.images, self.image_size
        p, r, rm, m = self.prompts, self.refs, self.mask_refs, self.mask_size
        rk, k, rd, d = self.kpt_refs, self.kpt_points, self.depth_refs, self.depth_size
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "tokens": ((b, s), np.int32),
            "labels": ((b, s), np.int32),
            "positions": ((b, s), np.int32),
            "segment_ids": ((b, s), np.int32),
            "dialog_ids": ((b, s), np.int32),
            "visual_index": ((b, s), np.int32),
            "images": ((b, i, y, y, 3), np.uint8),
            "image_valid": ((b, i), np.bool_),
            "pixel_box": ((b, i, 4), np.int32),
            "prompt_masks": ((b, p, y, y), np.uint8),
            "prompt_image": ((b, p), np.int32),
            "prompt_valid": ((b, p), np.bool_),
            "ref_pos": ((b, r), np.int32),
            "ref_unit": ((b, r), np.int32),
            "ref_group": ((b, r), np.int32),
            "ref_image": ((b, r), np.int32),
            "ref_valid": ((b, r), np.bool_),
            "boxes": ((b, r, 4), np.float32),
            "masks": ((b, rm, m, m), np.uint8),
            "mask_slot": ((b, r), np.int32),
            "keypoints": ((b, rk, k, 3), np.float32),
            "keypoint_slot": ((b, r), np.int32),
            "depth": ((b, rd, d, d), np.float16),
            "depth_relative": ((b, rd), np.bool_),
            "depth_slot": ((b, r), np.int32),
            "sample_id": ((b,), np.int32),
        }
        return {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in shapes.items()}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """One global or per-process batch of rendered rows. Arrays are NumPy on the host, JAX inside."""

    tokens: Any
    """int32[B, S] token ids; 0 at image and prompt positions and in the padding."""
    labels: Any
    """int32[B, S] the token itself where it is supervised, else IGNORE_ID (the loss shifts)."""
    positions: Any
    """int32[B, S] rotary position inside the segment."""
    segment_ids: Any
    """int32[B, S] 1, 2, ... for packed rows that see nothing of one another; 0 for padding."""
    dialog_ids: Any
    """int32[B, S] inside a segment: 0 is seen by all that follows, 1, 2, ... only by its own number.
    Dialogues that share a picture without sharing answers; all 0 for one conversation."""
    visual_index: Any
    """int32[B, S] TEXT, or i*N + n for patch n of image i, or I*N + p*T + t for token t of prompt p."""
    images: Any
    """uint8[B, I, Y, X, 3] square-padded RGB pictures; normalised on the device."""
    image_valid: Any
    """bool[B, I]."""
    pixel_box: Any
    """int32[B, I, 4] x0, y0, x1, y1 of the real picture inside the padded square, in its pixels."""
    prompt_masks: Any
    """uint8[B, P, Y, X] {0, 1} rasterised region prompts on the padded square."""
    prompt_image: Any
    """int32[B, P] which image of the row a prompt belongs to."""
    prompt_valid: Any
    """bool[B, P]."""
    ref_pos: Any
    """int32[B, R] position of each `<REF>` token; 0 where invalid."""
    ref_unit: Any
    """int32[B, R] `trp.tokens.Unit`."""
    ref_group: Any
    """int32[B, R] phrase group of the reference, increasing left to right; NO_GROUP where invalid."""
    ref_image: Any
    """int32[B, R] image the reference lies in."""
    ref_valid: Any
    """bool[B, R]."""
    boxes: Any
    """float32[B, R, 4] box targets (cx, cy, w, h) / padded side, of keypoint references too."""
    masks: Any
    """uint8[B, Rm, M, M] {0, 1} mask targets on the padded square."""
    mask_slot: Any
    """int32[B, R] row of `masks` that is the target of a reference, or NO_SLOT."""
    keypoints: Any
    """float32[B, Rk, K, 3] (x, y) / padded side and COCO's visibility: 0 unlabelled, 1 hidden,
    2 visible."""
    keypoint_slot: Any
    """int32[B, R] row of `keypoints` that is the target of a reference, or NO_SLOT."""
    depth: Any
    """float16[B, Rd, M, M] depth targets on the padded square, 0 where nothing is known; metres, or
    inverse depth up to scale and shift where `depth_relative`."""
    depth_relative: Any
    """bool[B, Rd]."""
    depth_slot: Any
    """int32[B, R] row of `depth` that is the target of a reference, or NO_SLOT."""
    sample_id: Any
    """int32[B] index of the row in the global sample stream; negative for dummy rows."""

    @classmethod
    def from_dict(cls, arrays: Mapping[str, Any]) -> "Batch":
        """Builds a batch from named arrays; raises KeyError naming a missing or unknown field."""
        names = {field.name for field in dataclasses.fields(cls)}
        if wrong := names ^ set(arrays):
            raise KeyError(f"batch fields missing or unknown: {sorted(wrong)}")
        return cls(**arrays)

    def cut(self, length: int) -> "Batch":
        """The same rows with only their first `length` positions (`S`).

        Raises:
          ValueError: a row is longer.
        """
        if (self.segment_ids[:, length:] > 0).any():
            longest = int((self.segment_ids > 0).sum(axis=1).max())
            raise ValueError(f"a row of {longest} positions does not fit {length}")
        cut = {name: getattr(self, name)[:, :length] for name in _BY_POSITION}
        return dataclasses.replace(self, **cut)

    def asdict(self) -> dict[str, Any]:
        """The arrays by name, without copying them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def empty_row(spec: BatchSpec) -> dict[str, np.ndarray]:
    """One row without a batch axis: nothing valid, nothing supervised (see `Batch` for meanings)."""
    row = {name: np.zeros(shape[1:], dtype) for name, (shape, dtype) in spec.fields(1).items()}
    row["labels"] += IGNORE_ID
    row["visual_index"] += TEXT
    row["ref_group"] += NO_GROUP
    for name in ("mask_slot", "keypoint_slot", "depth_slot"):
        row[name] += NO_SLOT
    row["sample_id"] -= 1
    return row


def abstract_batch(spec: BatchSpec, rows: int) -> Batch:
    """Shapes and dtypes of a batch, for ahead-of-time compilation."""
    return Batch.from_dict(
        {
            name: jax.ShapeDtypeStruct(shape, dtype)
            for name, (shape, dtype) in spec.fields(rows).items()
        }
    )
