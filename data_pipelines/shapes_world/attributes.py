"""The vocabulary of the world: shapes, colours, textures, sizes, and which pairs are held out."""

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 44),
    "green": (44, 160, 60),
    "blue": (44, 84, 214),
    "yellow": (235, 205, 50),
    "purple": (142, 62, 178),
    "cyan": (50, 190, 205),
    "orange": (240, 130, 35),
}
TEXTURES = ("plain", "striped", "dotted", "checked")
PERSON = "person"
# COCO ids have gaps; so do these, lest anything assume 1..n.
CATEGORY_IDS = {
    PERSON: 1,
    "circle": 3,
    "square": 4,
    "triangle": 6,
    "star": 7,
    "cross": 9,
    "diamond": 10,
}


def held_out_pairs() -> frozenset[tuple[str, str]]:
    """(shape, colour) pairs that never occur in training: one a shape, each another colour."""
    colours = np.random.default_rng(20).permutation(list(COLOURS))
    return frozenset(zip(SHAPES, map(str, colours), strict=False))


HELD_OUT = held_out_pairs()
SEEN = tuple((s, c) for s in SHAPES for c in COLOURS if (s, c) not in HELD_OUT)
