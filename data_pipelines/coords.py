"""Regions of a dialogue as coordinates in its text: the coordinate register."""

from collections.abc import Sequence

import numpy as np

from data_pipelines.options import EncodeError
from data_pipelines.records import Dialog, PromptKind, Span, Turn
from refvlm_jax import rle
from refvlm_jax.geometry import PaddedSquare
from refvlm_jax.trp.coords import format_boxes
from refvlm_jax.trp.tokens import PROMPT_SLOT, Unit


def write_prompts(question: str, dialog: Dialog, turn: Turn) -> str:
    """The question with its region slots replaced by coordinates."""
    pieces = question.split(PROMPT_SLOT)
    written = [
        format_boxes([_coords(dialog, p.region, point=p.kind is PromptKind.POINT)])
        for p in turn.prompts
    ]
    return pieces[0] + "".join(a + b for a, b in zip(written, pieces[1:], strict=True))


def span_coords(dialog: Dialog, span: Span) -> list[list[float]]:
    """Boxes (or points) of a span's targets as fractions of the padded square."""
    point = span.unit is Unit.POINT
    return [_coords(dialog, region, point=point) for region in span.targets]


def _coords(dialog: Dialog, index: int, *, point: bool) -> list[float]:
    """x, y or x1, y1, x2, y2 of a region as fractions of the padded square."""
    region, image = dialog.regions[index], dialog.image
    if image is None:
        raise EncodeError(f"{dialog.uid}: region {index} without a picture; drop the record")
    corners: Sequence[float] | None = region.point if point else region.box
    if corners is None and region.mask is not None and not point:
        box = rle.tight_box(region.mask.counts, region.mask.h, region.mask.w)
        scale = np.array([image.width / region.mask.w, image.height / region.mask.h] * 2)
        corners = None if box is None else (np.array(box) * scale).tolist()
    if corners is None:
        raise EncodeError(
            f"{dialog.uid}: region {index} has no {'point' if point else 'box'} to write as text; "
            "correct the record or use the `ref` register"
        )
    square = PaddedSquare(image.width, image.height)
    return square.points_to_model(np.reshape(corners, (-1, 2))).reshape(-1).tolist()
