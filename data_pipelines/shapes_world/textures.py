"""Surface textures and shading."""

import numpy as np

from data_pipelines.shapes_world.attributes import COLOURS
from data_pipelines.shapes_world.scene import Scene, Thing


def paint(thing: Thing, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """float32[H, W, 3] colour of a thing wherever it may be seen."""
    base = np.array(COLOURS.get(thing.colour, (35, 35, 40)), np.float32)
    base = base + rng.uniform(-10, 10, 3).astype(np.float32)
    y, x = np.mgrid[0 : scene.height, 0 : scene.width].astype(np.float32)
    u, v = (x - thing.x) / thing.radius, (y - thing.y) / thing.radius
    dark = _pattern(thing.texture, u, v)
    colour = base * np.where(dark, 0.55, 1.0)[..., None].astype(np.float32)
    if scene.level >= 3:
        colour = colour * (1.0 - 0.22 * (0.5 * u + v).clip(-1, 1))[..., None]
    return colour.clip(0, 255)


def _pattern(texture: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Where the darker shade of a texture lies, in the thing's own coordinates."""
    if texture == "striped":
        return np.floor((u + v) * 2.6) % 2 == 0
    if texture == "dotted":
        a, b = (u * 2.2) % 1 - 0.5, (v * 2.2) % 1 - 0.5
        return a * a + b * b < 0.075
    if texture == "checked":
        return (np.floor(u * 2.2) + np.floor(v * 2.2)) % 2 == 0
    return np.zeros_like(u, bool)
