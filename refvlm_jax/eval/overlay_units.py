"""Skeletons and depth maps in colour, as pieces of the SVG that `overlay` draws."""

import base64
import io

import matplotlib
import numpy as np
from PIL import Image

from refvlm_jax.eval.depth_maps import first_depth, load_depth
from refvlm_jax.eval.record_types import DepthMap, Truth

SKELETON = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
    (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
"""COCO's limbs as pairs of joints, counted from 0."""
_JOINTS = 17
_SEEN = 0.5
"""Visibility above which a joint is drawn: a probability in predictions, 1 or 2 in truths."""
Range = tuple[float, float]


def skeleton(keypoints: list[list[float]], width: int, height: int, colour: str) -> str:
    """Limbs between visible joints, and the joints; figures that are not COCO's have no limbs."""
    drawn = [(x, y) if v > _SEEN else None for x, y, v in keypoints]
    pairs = SKELETON if len(keypoints) == _JOINTS else ()
    ends = [(drawn[a], drawn[b]) for a, b in pairs]
    path = "".join(
        f"M{a[0]:.2f} {a[1]:.2f}L{b[0]:.2f} {b[1]:.2f}" for a, b in ends if a and b
    )  # fmt: skip
    radius = 0.009 * max(width, height)
    dots = "".join(
        f'<circle cx="{p[0]:.2f}" cy="{p[1]:.2f}" r="{radius:.2f}"/>' for p in drawn if p
    )
    limbs = f'<path class="case" d="{path}"/><path d="{path}"/>' if path else ""
    return f'<g class="pose" {colour}>{limbs}{dots}</g>'


def pose_anchor(keypoints: list[list[float]]) -> tuple[float, float] | None:
    """Where the number of a figure goes: the upper left corner around its visible joints."""
    points = [(x, y) for x, y, v in keypoints if v > _SEEN]
    if not points:
        return None
    return min(x for x, _ in points), min(y for _, y in points)


def depth_range(truth: Truth) -> Range | None:
    """Inverse depths that both drawings of a sample colour alike; None without a depth map."""
    depth = first_depth(truth)
    if depth is None:
        return None
    return _span(_inverse(depth, truth.width, truth.height))


def depth_layer(depth: DepthMap, width: int, height: int, span: Range | None) -> str:
    """An SVG image of a depth map: near is red, far is blue, unknown is left transparent.

    Args:
      span: inverse depths of the two ends of the scale; None takes the map's own. A relative map
        always takes its own.
    """
    inverse = _inverse(depth, width, height)
    low, high = _span(inverse) if span is None or depth.kind == "relative" else span
    share = np.clip((inverse - low) / max(high - low, 1e-9), 0.0, 1.0)
    colours = matplotlib.colormaps["turbo"](np.nan_to_num(share), bytes=True)
    colours[..., 3] = np.where(np.isfinite(inverse), 255, 0)
    buffer = io.BytesIO()
    Image.fromarray(colours).save(buffer, "PNG", optimize=True)
    uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return (
        f'<image class="depth" href="{uri}" width="{width}" height="{height}" '
        'preserveAspectRatio="none"/>'
    )


def _inverse(depth: DepthMap, width: int, height: int) -> np.ndarray:
    values = load_depth(depth, width, height)
    if depth.kind == "relative":
        return values
    return 1.0 / np.where(values > 0, values, np.nan)


def _span(inverse: np.ndarray) -> Range:
    known = inverse[np.isfinite(inverse)]
    return (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
