"""The boundary of a mask as an SVG path along pixel edges."""

from collections import defaultdict

import numpy as np

Point = tuple[int, int]


def outline_path(mask: np.ndarray) -> str:
    """Closed loops around a mask [H, W], inside on the right; even-odd filling restores the mask.

    Coordinates are pixel corners: pixel (row, column) covers x from column to column + 1.
    """
    edges = _edges(mask)
    loops = []
    while edges:
        loops.append(_loop(edges))
    return "".join(_written(loop) for loop in loops)


def _edges(mask: np.ndarray) -> dict[Point, list[Point]]:
    """Directed unit edges between inside and outside: start -> ends."""
    inside = np.pad(np.asarray(mask, np.int8), 1)
    edges: dict[Point, list[Point]] = defaultdict(list)
    down = np.diff(inside, axis=0)[:, 1:-1]  # [H + 1, W], between rows
    for y, x in np.argwhere(down == 1).tolist():
        edges[x, y].append((x + 1, y))
    for y, x in np.argwhere(down == -1).tolist():
        edges[x + 1, y].append((x, y))
    across = np.diff(inside, axis=1)[1:-1]  # [H, W + 1], between columns
    for y, x in np.argwhere(across == -1).tolist():
        edges[x, y].append((x, y + 1))
    for y, x in np.argwhere(across == 1).tolist():
        edges[x, y + 1].append((x, y))
    return edges


def _loop(edges: dict[Point, list[Point]]) -> list[Point]:
    """Takes one closed loop out of `edges`; every corner has as many ways in as out."""
    start = next(iter(edges))
    loop, here = [start], start
    while True:
        ends = edges[here]
        following = ends.pop()
        if not ends:
            del edges[here]
        here = following
        if here == start:
            return loop
        loop.append(here)


def _written(loop: list[Point]) -> str:
    """The path of a loop with only its corners."""
    count = len(loop)
    corners = [
        loop[k] for k in range(count) if not _straight(loop[k - 1], loop[k], loop[(k + 1) % count])
    ]
    return "M" + "L".join(f"{x} {y}" for x, y in corners) + "Z"


def _straight(a: Point, b: Point, c: Point) -> bool:
    return (a[0] == b[0] == c[0]) or (a[1] == b[1] == c[1])
