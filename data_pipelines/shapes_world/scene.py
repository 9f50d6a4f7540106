"""Sampling the layout of a scene: what stands where, in pixels, back to front."""

from dataclasses import dataclass, field

import numpy as np

from data_pipelines.shapes_world.attributes import HELD_OUT, PERSON, SEEN, TEXTURES

LONG_SIDE = {1: (64, 112), 2: (96, 192), 3: (160, 320)}
COUNT = {1: (2, 4), 2: (3, 6), 3: (3, 9)}
PEOPLE = {1: 0.15, 2: 0.35, 3: 0.5}
"""Chance that a scene has a person."""
TWINS = 0.35
"""Chance that an object has the shape of one that is there already, as RefCOCO's pictures have several
objects of a kind: then only its colour or its place tells it from the other."""
OVERLAP = {1: 0.0, 2: 0.15, 3: 0.45}
"""Share of the smaller radius that two objects may overlap."""
RADII = {
    1: {"small": (0.1, 0.125), "large": (0.17, 0.21)},
    2: {"small": (0.08, 0.105), "large": (0.14, 0.175)},
    3: {"small": (0.08, 0.105), "large": (0.14, 0.175)},
}
"""Range of the radius by level and size word, as a share of the picture's long side."""


@dataclass
class Thing:
    """One object: a shape or a person."""

    shape: str
    colour: str
    texture: str
    size: str
    x: float
    y: float
    radius: float
    pose: int = 0
    """Seed of a person's pose."""

    @property
    def is_person(self) -> bool:
        """Whether it is a stick figure."""
        return self.shape == PERSON

    def touches(self, other: "Thing", allowed: float) -> bool:
        """Whether the discs around both overlap by more than `allowed` of the smaller radius."""
        distance = np.hypot(self.x - other.x, self.y - other.y)
        return distance < self.radius + other.radius - allowed * min(self.radius, other.radius)


@dataclass
class Scene:
    """A picture before it is drawn."""

    level: int
    width: int
    height: int
    things: list[Thing] = field(default_factory=list)
    """Back to front."""
    horizon: float = 0.35
    """Height of the horizon as a fraction of the picture."""
    seed: int = 0
    """Seed of everything that drawing adds: ground, noise, light."""


def sample_scene(level: int, rng: np.random.Generator, *, held_out: bool = False) -> Scene:
    """A scene of a difficulty level; `held_out` puts in at least one pair never seen in training."""
    width, height = _size(level, rng)
    scene = Scene(level, width, height, horizon=float(rng.uniform(0.25, 0.4)))
    scene.seed = int(rng.integers(1 << 31))
    wanted = int(rng.integers(COUNT[level][0], COUNT[level][1] + 1))
    if rng.random() < PEOPLE[level]:
        _place(scene, rng, (PERSON, "black"))
    if held_out:
        pairs = sorted(HELD_OUT)
        for _ in range(4):
            if _place(scene, rng, pairs[rng.integers(len(pairs))]):
                break
    for _ in range(4 * wanted):
        if len(scene.things) >= wanted:
            break
        shapes = {t.shape for t in scene.things}
        alike = [pair for pair in SEEN if pair[0] in shapes]
        choices = alike if alike and rng.random() < TWINS else SEEN
        _place(scene, rng, choices[rng.integers(len(choices))])
    # What stands lower in the picture is nearer and covers what is behind it.
    scene.things.sort(key=lambda t: t.y + t.radius)
    return scene


def _size(level: int, rng: np.random.Generator) -> tuple[int, int]:
    low, high = LONG_SIDE[level]
    long = int(rng.integers(low, high + 1))
    ratio = rng.choice([1.0, 1.0, 0.75, 0.67, rng.uniform(0.6, 1.0)])
    short = max(round(long * ratio), 48)
    return (long, short) if rng.random() < 0.5 else (short, long)


def _place(scene: Scene, rng: np.random.Generator, pair: tuple[str, str]) -> bool:
    """Tries to find room for one thing."""
    long = max(scene.width, scene.height)
    for _ in range(20):
        person = pair[0] == PERSON
        size = "large" if person else str(rng.choice(["small", "large"]))
        radius = long * (
            rng.uniform(0.15, 0.19) if person else rng.uniform(*RADII[scene.level][size])
        )
        if 2 * radius + 2 >= min(scene.width, scene.height):
            continue
        thing = Thing(
            shape=pair[0],
            colour=pair[1],
            texture="plain" if scene.level == 1 or person else str(rng.choice(TEXTURES)),
            size=size,
            x=float(rng.uniform(radius + 1, scene.width - radius - 1)),
            y=float(rng.uniform(radius + 1, scene.height - radius - 1)),
            radius=float(radius),
            pose=int(rng.integers(1 << 31)),
        )
        if not any(_conflict(thing, other, scene.level) for other in scene.things):
            scene.things.append(thing)
            return True
    return False


def _conflict(thing: Thing, other: Thing, level: int) -> bool:
    if thing.touches(other, OVERLAP[level]):
        return True
    same = (thing.shape, thing.colour) == (other.shape, other.colour)
    return level == 1 and same and (thing.is_person or thing.size == other.size)
