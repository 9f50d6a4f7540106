"""Drawing a picture with what its answer refers to and region prompts on it as one inline SVG.

Coordinates of the drawing are pixels of the original picture, so overlays need no scaling.
"""

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from refvlm_jax.eval.masks import clipped_box, load_mask
from refvlm_jax.eval.outline import outline_path
from refvlm_jax.eval.overlay_units import Range, depth_layer, pose_anchor, skeleton
from refvlm_jax.eval.record_types import Box, Prediction, Rle, Triplet, Truth
from refvlm_jax.rle import tight_box

# Hues that the eye tells apart; evenly spaced ones would be green for a third of all phrases.
_HUES = (0, 18, 36, 52, 76, 128, 160, 184, 205, 230, 262, 288, 312, 338)
_SMALL, _LARGE = 256, 640  # pictures are brought between these sides for the page


@dataclass(frozen=True, kw_only=True)
class RegionPrompt:
    """A region the question pointed at, in pixels: any one of the three."""

    box: Box | None = None
    point: tuple[float, float] | None = None
    rle: Rle | None = None


def hue(phrase: str) -> int:
    """The colour of a phrase in degrees: the same on every page and machine."""
    digest = hashlib.sha256(phrase.strip().lower().encode()).digest()
    return _HUES[int.from_bytes(digest[:4], "big") % len(_HUES)]


def image_uri(image: np.ndarray) -> str:
    """A data URI of a picture [H, W, 3] uint8; small ones are enlarged, large ones reduced."""
    picture = Image.fromarray(np.ascontiguousarray(image, np.uint8)).convert("RGB")
    side = max(picture.size)
    target = min(max(side, _SMALL), _LARGE)
    if target != side:
        size = [max(1, round(length * target / side)) for length in picture.size]
        picture = picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    kind = "PNG" if side <= _SMALL else "JPEG"  # photographs are large as PNG
    buffer = io.BytesIO()
    picture.save(buffer, kind, optimize=True, **({} if kind == "PNG" else {"quality": 85}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def overlay_svg(
    record: Truth | Prediction | None,
    image_element: str,
    width: int,
    height: int,
    *,
    label: str,
    prompts: Sequence[RegionPrompt] = (),
    depth_span: Range | None = None,
) -> str:
    """An SVG of the picture with the objects of one record.

    Args:
      record: whose objects to draw; None draws none.
      image_element: SVG that shows the picture, `image` or `use`.
      width: of the original picture.
      height: of the original picture.
      label: what a screen reader says.
      prompts: regions of the question, drawn dashed.
      depth_span: ends of the colour scale of depth maps, see `overlay_units.depth_layer`.
    """
    shapes = _objects(record.triplets, width, height, depth_span) if record is not None else []
    shapes += [_prompt(prompt, width, height) for prompt in prompts]
    return (
        f'<svg class="picture" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(label, quote=True)}">{image_element}{"".join(shapes)}</svg>'
    )


def standalone_svg(
    image: np.ndarray, record: Prediction, prompts: Sequence[RegionPrompt] = ()
) -> str:
    """The same drawing as a file of its own.

    Args:
      image: uint8[H, W, 3], the original picture.
    """
    height, width = image.shape[:2]
    shown = image_element(image, "picture", width, height)
    svg = overlay_svg(record, shown, width, height, label=record.plain, prompts=prompts)
    style = (Path(__file__).parent / "picture.css").read_text(encoding="utf-8")
    opening, rest = svg.split(">", 1)
    return f'{opening} xmlns="http://www.w3.org/2000/svg"><style>{style}</style>{rest}\n'


def image_element(image: np.ndarray, element_id: str, width: int, height: int) -> str:
    """SVG of the picture itself, to be shown again by `use` of its id."""
    return (
        f'<image id="{element_id}" href="{image_uri(image)}" width="{width}" height="{height}" '
        'preserveAspectRatio="none"/>'
    )


def _objects(
    triplets: Sequence[Triplet], width: int, height: int, depth_span: Range | None
) -> list[str]:
    """Shapes first, then all numbers, so that no shape hides one."""
    shapes, numbers = [], []
    count = 0
    for triplet in triplets:
        for instance in triplet.instances:
            count += 1
            colour = f'data-ref="{count}" style="--h:{hue(triplet.phrase)}"'
            anchor = None
            if instance.depth is not None:
                shapes.append(depth_layer(instance.depth, width, height, depth_span))
            if instance.keypoints:
                shapes.append(skeleton(instance.keypoints, width, height, colour))
                anchor = pose_anchor(instance.keypoints)
                numbers += [_number(count, anchor, width, height, colour)] if anchor else []
                continue
            if instance.rle is not None:
                shapes.append(_mask(instance.rle, width, height, colour))
                anchor = _mask_anchor(instance.rle, width, height)
            box = clipped_box(instance.box, height, width)
            if box is not None:
                shapes.append(_box(box, colour))
                anchor = anchor or (float(box[0]), float(box[1]))
            if anchor is not None:
                numbers.append(_number(count, anchor, width, height, colour))
    return shapes + numbers


def _mask(rle: Rle, width: int, height: int, colour: str) -> str:
    path = outline_path(load_mask(rle, height, width))
    return f'<g class="mask" {colour}><path class="case" d="{path}"/><path d="{path}"/></g>'


def _box(box: np.ndarray, colour: str) -> str:
    x1, y1, x2, y2 = box
    place = f'x="{x1:.2f}" y="{y1:.2f}" width="{x2 - x1:.2f}" height="{y2 - y1:.2f}"'
    return f'<g class="box" {colour}><rect class="case" {place}/><rect {place}/></g>'


def _mask_anchor(rle: Rle, width: int, height: int) -> tuple[float, float] | None:
    """The upper left corner of a mask, where boxes have their number too."""
    h, w = rle["size"]
    box = tight_box(rle["counts"].encode("ascii"), h, w)
    return None if box is None else (box[0] * width / w, box[1] * height / h)


def _number(count: int, anchor: tuple[float, float], width: int, height: int, colour: str) -> str:
    radius = 0.036 * max(width, height)
    x = min(max(anchor[0], radius), width - radius)
    y = min(max(anchor[1], radius), height - radius)
    return (
        f'<g class="number" {colour}><circle cx="{x:.2f}" cy="{y:.2f}" r="{radius:.2f}"/>'
        f'<text x="{x:.2f}" y="{y:.2f}" font-size="{1.35 * radius:.2f}">{count}</text></g>'
    )


def _prompt(prompt: RegionPrompt, width: int, height: int) -> str:
    if prompt.rle is not None:
        path = outline_path(load_mask(prompt.rle, height, width))
        shape = f'<path {{}}d="{path}"/>'
    elif prompt.box is not None:
        x1, y1, x2, y2 = prompt.box
        shape = f'<rect {{}}x="{x1:.2f}" y="{y1:.2f}" width="{x2 - x1:.2f}" '
        shape += f'height="{y2 - y1:.2f}"/>'
    elif prompt.point is not None:
        x, y = prompt.point
        shape = f'<circle {{}}cx="{x:.2f}" cy="{y:.2f}" r="{0.03 * max(width, height):.2f}"/>'
    else:
        return ""
    return f'<g class="prompt">{shape.format(CASE)}{shape.format("")}</g>'


CASE = 'class="case" '
"""A dark line below the bright one keeps both visible on any picture."""
