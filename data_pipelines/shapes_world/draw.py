"""Drawing a scene: picture, visible mask of every thing, and depth."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from data_pipelines.shapes_world.attributes import COLOURS
from data_pipelines.shapes_world.background import ground
from data_pipelines.shapes_world.people import LIMBS, joints
from data_pipelines.shapes_world.scene import Scene, Thing
from data_pipelines.shapes_world.textures import paint

SCALE = 4
"""Supersampling of edges."""
NEAR, FAR = 1.5, 20.0
"""Depth in metres at the bottom of the picture and at the horizon."""


@dataclass
class Drawing:
    """What a scene looks like."""

    picture: np.ndarray
    """uint8[H, W, 3]."""
    masks: list[np.ndarray]
    """bool[H, W] visible pixels of each thing."""
    whole: list[np.ndarray]
    """bool[H, W] pixels each thing would cover alone."""
    depth: np.ndarray
    """float32[H, W] metres; 0 above the horizon."""


def outline(thing: Thing) -> list[list[tuple[float, float]]]:
    """Polygons of a shape in pixels; a person is several limbs and a head."""
    if thing.is_person:
        return _person(thing)
    unit = {
        "circle": _regular(28, 0.0),
        "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
        "triangle": [(0.0, -1.0), (0.95, 0.8), (-0.95, 0.8)],
        "star": _star(),
        "cross": _cross(0.33),
        "diamond": [(0.0, -1.0), (0.72, 0.0), (0.0, 1.0), (-0.72, 0.0)],
    }[thing.shape]
    return [[(thing.x + thing.radius * a, thing.y + thing.radius * b) for a, b in unit]]


def _regular(count: int, turn: float) -> list[tuple[float, float]]:
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False) + turn
    return [(float(np.cos(a)), float(np.sin(a))) for a in angles]


def _star() -> list[tuple[float, float]]:
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    return [
        (float(r * np.cos(a)), float(r * np.sin(a)))
        for a, r in zip(angles, [1.0, 0.45] * 5, strict=True)
    ]


def _cross(arm: float) -> list[tuple[float, float]]:
    a = arm
    return [
        (-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a),
        (-1, -a), (-a, -a),
    ]  # fmt: skip


def _person(thing: Thing) -> list[list[tuple[float, float]]]:
    points, thick = joints(thing.x, thing.y, thing.radius, thing.pose), 0.075 * thing.radius
    parts = [_bar(points[a], points[b], thick) for a, b in LIMBS]
    neck, hips = points[5:7].mean(0), points[11:13].mean(0)
    parts.append(_bar(neck, hips, 1.8 * thick))
    head = points[0] + np.array([0.0, 0.02 * thing.radius])
    parts.append([tuple(head + 0.2 * thing.radius * np.array(p)) for p in _regular(16, 0.0)])
    parts.append(_bar(neck, head, thick))
    return parts


def _bar(a: np.ndarray, b: np.ndarray, half: float) -> list[tuple[float, float]]:
    along = (b - a) / max(float(np.hypot(*(b - a))), 1e-6)
    side = half * np.array([-along[1], along[0]])
    end = half * along
    return [tuple(p) for p in (a + side - end, b + side + end, b - side + end, a - side - end)]


def draw(scene: Scene) -> Drawing:
    """Paints the ground, then every thing from back to front."""
    rng = np.random.default_rng(scene.seed)
    picture = ground(scene, rng).astype(np.float32)
    depth = ground_depth(scene)
    masks: list[np.ndarray] = []
    whole: list[np.ndarray] = []
    for thing in scene.things:
        cover = coverage(thing, scene.width, scene.height)
        colour = paint(thing, scene, rng)
        picture += cover[..., None] * (colour - picture)
        solid = cover >= 0.5
        masks = [mask & ~solid for mask in masks]
        masks.append(solid)
        whole.append(solid)
        depth = np.where(solid, thing_depth(thing, scene), depth)
    if scene.level >= 2:
        picture += rng.normal(0, 1.5 * scene.level, picture.shape)
    return Drawing(picture.clip(0, 255).astype(np.uint8), masks, whole, depth.astype(np.float32))


def coverage(thing: Thing, width: int, height: int) -> np.ndarray:
    """float[H, W] share of each pixel that a thing covers, rasterised on its crop only."""
    x0, y0 = int(max(thing.x - thing.radius - 2, 0)), int(max(thing.y - thing.radius - 2, 0))
    x1 = int(min(thing.x + thing.radius + 3, width))
    y1 = int(min(thing.y + thing.radius + 3, height))
    canvas = Image.new("L", ((x1 - x0) * SCALE, (y1 - y0) * SCALE))
    pen = ImageDraw.Draw(canvas)
    for polygon in outline(thing):
        pen.polygon([((x - x0) * SCALE, (y - y0) * SCALE) for x, y in polygon], fill=255)
    fine = np.asarray(canvas, np.float32).reshape(y1 - y0, SCALE, x1 - x0, SCALE)
    cover = np.zeros((height, width), np.float32)
    cover[y0:y1, x0:x1] = fine.mean((1, 3)) / 255
    return cover


def ground_depth(scene: Scene) -> np.ndarray:
    """float[H, W] metres of the ground plane; 0 (sky) above the horizon."""
    row = (np.arange(scene.height) + 0.5) / scene.height
    below = np.clip((row - scene.horizon) / (1 - scene.horizon), 0, 1)
    metres = np.where(row > scene.horizon, 1 / (1 / FAR + below * (1 / NEAR - 1 / FAR)), 0)
    return np.repeat(metres[:, None], scene.width, axis=1)


def thing_depth(thing: Thing, scene: Scene) -> float:
    """Metres of an upright thing: that of the ground where it stands."""
    foot = min(thing.y + thing.radius, scene.height - 1) / scene.height
    below = max((foot - scene.horizon) / (1 - scene.horizon), 0.02)
    return 1 / (1 / FAR + below * (1 / NEAR - 1 / FAR))


def base_colour(thing: Thing) -> tuple[int, int, int]:
    """RGB of a thing's paint."""
    return COLOURS.get(thing.colour, (35, 35, 40))
