"""Backgrounds, from a plain ground to clutter with light and blur."""

import numpy as np
from PIL import Image, ImageFilter

from data_pipelines.shapes_world.scene import Scene


def ground(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """uint8[H, W, 3] what stands behind every thing."""
    if scene.level == 1:
        tone = rng.uniform(195, 248, 3)
        return np.broadcast_to(tone, (scene.height, scene.width, 3)).astype(np.uint8)
    picture = _gradient(scene, rng)
    if scene.level == 2:
        return picture
    return _clutter(picture, scene, rng)


def _gradient(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Sky above the horizon, floor below, both fading."""
    sky, floor = rng.uniform(150, 240, 3), rng.uniform(110, 210, 3)
    row = ((np.arange(scene.height) + 0.5) / scene.height)[:, None, None]
    fade = 1.0 - 0.35 * np.abs(row - scene.horizon)
    tone = np.where(row < scene.horizon, sky, floor) * fade
    return np.broadcast_to(tone, (scene.height, scene.width, 3)).clip(0, 255).astype(np.uint8)


def _clutter(picture: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Noise on several scales, soft blobs, a light from one side, and blur."""
    out = picture.astype(np.float32)
    for cells, strength in ((4, 30.0), (12, 18.0), (40, 9.0)):
        out += strength * _noise(cells, scene, rng)
    y, x = np.mgrid[0 : scene.height, 0 : scene.width]
    for _ in range(int(rng.integers(4, 10))):
        cx, cy = rng.uniform(0, scene.width), rng.uniform(0, scene.height)
        radius = rng.uniform(0.04, 0.16) * max(scene.width, scene.height)
        blob = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / radius**2)[..., None]
        out += blob * (rng.uniform(60, 200, 3) - out) * 0.7
    angle = rng.uniform(0, 2 * np.pi)
    light = (x * np.cos(angle) / scene.width + y * np.sin(angle) / scene.height)[..., None]
    out *= 1.0 + 0.2 * (light - light.mean())
    blurred = Image.fromarray(out.clip(0, 255).astype(np.uint8))
    return np.asarray(blurred.filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 1.6))))


def _noise(cells: int, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    coarse = rng.normal(0, 1, (cells, cells, 3)).astype(np.float32)
    size = (scene.width, scene.height)
    planes = [
        Image.fromarray(coarse[..., k]).resize(size, Image.Resampling.BICUBIC) for k in range(3)
    ]
    return np.stack([np.asarray(p) for p in planes], axis=-1)
