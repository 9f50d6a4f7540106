"""Region prompts a person would draw: point, box, scribble and mask, as binary pictures."""

import numpy as np
from PIL import Image, ImageDraw


def prompts(mask: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """bool[H, W] prompt of each kind for an object's visible mask; all lie inside its box."""
    rows, columns = np.nonzero(mask)
    box = np.zeros_like(mask)
    box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    return {"point": _point(mask, rng), "box": box, "scribble": _scribble(mask, rng), "mask": mask}


def _inner_pixels(mask: np.ndarray) -> np.ndarray:
    """int[n, 2] (y, x) of pixels away from the border where the object is thick enough."""
    inner = mask.copy()
    for _ in range(2):
        smaller = inner.copy()
        smaller[1:] &= inner[:-1]
        smaller[:-1] &= inner[1:]
        smaller[:, 1:] &= inner[:, :-1]
        smaller[:, :-1] &= inner[:, 1:]
        if not smaller.any():
            break
        inner = smaller
    return np.argwhere(inner)


def _point(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    inner = _inner_pixels(mask)
    y, x = inner[rng.integers(len(inner))]
    out = np.zeros_like(mask)
    out[y, x] = True
    return out


def _scribble(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A stroke through a few inner points, clipped to the object."""
    inner = _inner_pixels(mask)
    stops = inner[rng.integers(len(inner), size=4)]
    canvas = Image.new("L", mask.shape[::-1])
    path = [(int(x), int(y)) for y, x in stops]
    ImageDraw.Draw(canvas).line(path, fill=1, width=2)
    stroke = (np.asarray(canvas) > 0) & mask
    return stroke if stroke.any() else _point(mask, rng)
