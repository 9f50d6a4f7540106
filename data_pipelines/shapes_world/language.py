"""Captions, expressions, questions and grounded captions, each checked to be true of its scene."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from data_pipelines.shapes_world.attributes import COLOURS, SHAPES
from data_pipelines.shapes_world.scene import Scene, Thing

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Expression:
    """A description that is true of exactly one thing of its scene."""

    text: str
    thing: int
    kind: str
    """attribute | size | texture | relation | extreme."""


@dataclass(frozen=True)
class Question:
    """A question with a one-word answer."""

    text: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Grounded:
    """A caption whose phrases [start, end) name things."""

    text: str
    phrases: tuple[tuple[int, int, tuple[int, ...]], ...]


def name(thing: Thing) -> str:
    """ "red circle", "person"."""
    return "person" if thing.is_person else f"{thing.colour} {thing.shape}"


def _sized(thing: Thing) -> str:
    return f"{thing.size} {name(thing)}"


def _textured(thing: Thing) -> str:
    return f"{thing.texture} {name(thing)}" if not thing.is_person else name(thing)


def _left(a: Thing, b: Thing) -> bool:
    return a.x < b.x - 0.5 * min(a.radius, b.radius)


def _above(a: Thing, b: Thing) -> bool:
    return a.y < b.y - 0.5 * min(a.radius, b.radius)


RELATIONS: dict[str, Callable[[Thing, Thing], bool]] = {
    "left of": _left,
    "right of": lambda a, b: _left(b, a),
    "above": _above,
    "below": lambda a, b: _above(b, a),
}
EXTREMES: dict[str, Callable[[Thing], float]] = {
    "leftmost": lambda t: t.x,
    "rightmost": lambda t: -t.x,
    "topmost": lambda t: t.y,
    "bottommost": lambda t: -t.y,
}


def expressions(scene: Scene, visible: list[int]) -> list[Expression]:
    """Every expression of the grammar that holds of exactly one of the `visible` things."""
    things = scene.things
    found: dict[str, Expression] = {}
    for index in visible:
        thing = things[index]
        plain: list[tuple[str, str, Callable[[Thing], str]]] = [
            ("attribute", name(thing), name),
            ("attribute", thing.shape, lambda t: t.shape),
            ("size", _sized(thing), _sized),
        ]
        if scene.level > 1:
            plain.append(("texture", _textured(thing), _textured))
        for kind, text, describe in plain:
            if sum(describe(things[k]) == text for k in visible) == 1:
                found.setdefault(f"the {text}", Expression(f"the {text}", index, kind))
        for expression in (*_relations(scene, visible, index), *_extremes(scene, visible, index)):
            found.setdefault(expression.text, expression)
    return list(found.values())


def _relations(scene: Scene, visible: list[int], index: int) -> Iterator[Expression]:
    things = scene.things
    thing = things[index]
    for anchor in visible:
        other = things[anchor]
        if anchor == index or sum(name(things[k]) == name(other) for k in visible) != 1:
            continue
        for words, holds in RELATIONS.items():
            rivals = [
                k for k in visible
                if k != anchor and things[k].shape == thing.shape and holds(things[k], other)
            ]  # fmt: skip
            if rivals == [index]:
                text = f"the {thing.shape} {words} the {name(other)}"
                yield Expression(text, index, "relation")


def _extremes(scene: Scene, visible: list[int], index: int) -> Iterator[Expression]:
    things = scene.things
    shape = things[index].shape
    same = [k for k in visible if things[k].shape == shape]
    for members, label in ((visible, "object"), (same, shape)):
        for words, key in EXTREMES.items():
            if len(members) > 1 and _is_extreme(things, members, index, key):
                yield Expression(f"the {words} {label}", index, "extreme")


def _is_extreme(
    things: list[Thing], members: list[int], index: int, key: Callable[[Thing], float]
) -> bool:
    """Whether a thing comes first by `key`, clearly ahead of the second."""
    ranked = sorted(members, key=lambda k: key(things[k]))
    gap = key(things[ranked[1]]) - key(things[ranked[0]])
    return ranked[0] == index and gap > 0.3 * things[index].radius


def pick_expressions(
    scene: Scene, visible: list[int], rng: np.random.Generator, *, first: list[int], most: int = 4
) -> list[Expression]:
    """Up to `most` expressions over different things, those in `first` before others."""
    pool: dict[int, list[Expression]] = {}
    for expression in expressions(scene, visible):
        pool.setdefault(expression.thing, []).append(expression)
    order = [i for i in rng.permutation(visible) if i in first]
    order += [i for i in rng.permutation(visible) if i not in first]
    return [_choose(pool[int(i)], rng) for i in order if int(i) in pool][:most]


def _choose(options: list[Expression], rng: np.random.Generator) -> Expression:
    """Kinds first, then one of the kind, so that relations do not crowd out attributes."""
    kinds = sorted({e.kind for e in options})
    weights = np.array([{"attribute": 3.0, "extreme": 1.5}.get(k, 1.0) for k in kinds])
    kind = str(rng.choice(kinds, p=weights / weights.sum()))
    same = [e for e in options if e.kind == kind]
    return same[int(rng.integers(len(same)))]


def captions(scene: Scene, visible: list[int], rng: np.random.Generator) -> list[str]:
    """Three captions that name every visible thing, in different words and order."""
    return [_caption(scene, visible, rng, style) for style in range(3)]


def _caption(scene: Scene, visible: list[int], rng: np.random.Generator, style: int) -> str:
    order = sorted(visible, key=lambda k: scene.things[k].x)
    listed = listing([article(name(scene.things[k])) for k in order])
    if style == 0:
        return f"{listed[0].upper()}{listed[1:]}."
    if style == 1:
        return f"A picture of {listed}."
    return f"There {'is' if len(order) == 1 else 'are'} {listed}."


def description(thing: Thing, rng: np.random.Generator, *, textured: bool) -> str:
    """What a thing is by itself, whatever else is there: "a blue star", "a large blue star"."""
    told = [name, _sized, _textured]
    return article(str(told[int(rng.integers(3 if textured else 2))](thing)))


def article(phrase: str) -> str:
    """With "a" or "an"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def listing(items: list[str]) -> str:
    """ "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def grounded(scene: Scene, visible: list[int], rng: np.random.Generator) -> Grounded:
    """A caption in which every phrase is tied to its things; equal things share a phrase."""
    groups: dict[str, list[int]] = {}
    for k in sorted(visible, key=lambda k: scene.things[k].x):
        groups.setdefault(name(scene.things[k]), []).append(k)
    phrases = [
        (article(what) if len(ks) == 1 else f"{NUMBERS[len(ks)]} {_plural(what)}", tuple(ks))
        for what, ks in groups.items()
    ]
    text, spans = "", []
    for number, (phrase, ks) in enumerate(phrases):
        if number:
            text += " and " if number == len(phrases) - 1 else ", "
        phrase = phrase[0].upper() + phrase[1:] if number == 0 else phrase
        spans.append((len(text), len(text) + len(phrase), ks))
        text += phrase
    ending = str(rng.choice([" on a plain ground.", " in the picture.", "."]))
    return Grounded(text + ending, tuple(spans))


def _plural(what: str) -> str:
    if what.endswith("person"):
        return "people"
    return f"{what}es" if what.endswith("s") else f"{what}s"


def questions(
    scene: Scene, visible: list[int], rng: np.random.Generator, *, first: list[int], most: int = 4
) -> list[Question]:
    """Up to `most` questions of different kinds; yes and no are equally likely."""
    things = [scene.things[k] for k in visible]
    shapes = [t for t in things if not t.is_person]
    made = [_existence(things, rng), _count(things, rng)]
    focus = [scene.things[k] for k in first if k in visible] or shapes
    if focus and (q := _colour(focus, things, rng)):
        made.insert(0, q)
    if len(things) > 1 and (q := _side(things, rng)):
        made.append(q)
    order = [made[0], *(made[1 + int(i)] for i in rng.permutation(len(made) - 1))]
    return order[:most]


def _colour(focus: list[Thing], things: list[Thing], rng: np.random.Generator) -> Question | None:
    for i in rng.permutation(len(focus)):
        thing = focus[int(i)]
        if not thing.is_person and sum(t.shape == thing.shape for t in things) == 1:
            return Question(f"What colour is the {thing.shape}?", thing.colour, "colour")
    return None


def _existence(things: list[Thing], rng: np.random.Generator) -> Question:
    present = {name(t) for t in things}
    if rng.random() < 0.5:
        what, answer = str(rng.choice(sorted(present))), "yes"
    else:
        colours, shapes = sorted(COLOURS), list(SHAPES)
        what = next(iter(present))
        while what in present:
            what = f"{rng.choice(colours)} {rng.choice(shapes)}"
        answer = "no"
    return Question(f"Is there {article(what)}?", answer, "existence")


def _count(things: list[Thing], rng: np.random.Generator) -> Question:
    if rng.random() < 0.5:
        number = len(things)
        return Question("How many objects are there?", NUMBERS[number], "count")
    colours = sorted({t.colour for t in things if not t.is_person} or {"red"})
    colour = str(rng.choice(colours))
    number = sum(t.colour == colour for t in things)
    return Question(f"How many {colour} objects are there?", NUMBERS[number], "count")


def _side(things: list[Thing], rng: np.random.Generator) -> Question | None:
    for _ in range(6):
        a, b = (things[int(i)] for i in rng.choice(len(things), 2, replace=False))
        unique = all(sum(name(t) == name(x) for t in things) == 1 for x in (a, b))
        if unique and (_left(a, b) or _left(b, a)):
            text = f"Is the {name(a)} left or right of the {name(b)}?"
            return Question(text, "left" if _left(a, b) else "right", "side")
    return None
