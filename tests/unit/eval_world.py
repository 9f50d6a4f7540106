"""A synthetic test set with every scored task, shared by the tests of evaluation."""

from dataclasses import replace

import numpy as np

from refvlm_jax.eval.masks import load_mask
from refvlm_jax.eval.records import Instance, Prediction, Triplet, Truth
from refvlm_jax.rle import encode
from refvlm_jax.trp.render import render_answer
from refvlm_jax.trp.spans import TextSpan, closing_order
from refvlm_jax.trp.tokens import Unit

SIDE = 64
COLOURS = {
    "red": (214, 61, 52),
    "green": (64, 160, 88),
    "blue": (58, 104, 208),
    "yellow": (232, 188, 52),
}
SHAPES = ("circle", "square", "triangle")
POSITIONS = ((8, 8, 28, 28), (36, 6, 58, 26), (10, 36, 30, 58))


def disc(box: tuple[int, int, int, int]) -> np.ndarray:
    """bool[SIDE, SIDE] of the ellipse in a box."""
    x1, y1, x2, y2 = box
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    return ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1


def masked(mask: np.ndarray, **fields) -> Instance:
    rle = {"size": list(mask.shape), "counts": encode(mask).decode("ascii")}
    return Instance(rle=rle, **fields)


class Scene:
    """Three coloured shapes at fixed places."""

    def __init__(self, number: int):
        rng = np.random.default_rng(number)
        colours = rng.permutation(list(COLOURS))[:3]
        self.number = number
        self.names = [f"{c} {rng.choice(SHAPES)}" for c in colours]
        self.boxes = [
            tuple(float(v) for v in np.array(box) + rng.integers(-4, 5, 1)) for box in POSITIONS
        ]

    @property
    def picture(self) -> np.ndarray:
        image = np.full((SIDE, SIDE, 3), (236, 238, 240), np.uint8)
        for name, box in zip(self.names, self.boxes, strict=True):
            image[disc(box)] = COLOURS[name.split()[0]]
        return image

    def object(self, k: int, unit: Unit) -> Instance:
        return Instance(box=self.boxes[k]) if unit is Unit.BOX else masked(disc(self.boxes[k]))

    def truth(self, task: str, question: str, answer: str, parts=(), unit=Unit.BOX) -> Truth:
        """`parts`: phrase -> objects, phrases in order of the text."""
        spans, owned, start = [], [], 0
        for phrase, objects in parts:
            start = answer.index(phrase, start)
            spans.append(TextSpan(start, start + len(phrase), unit, len(objects)))
            owned.append([self.object(k, unit) for k in objects])
            start += len(phrase)
        triplets = [
            Triplet(
                phrase=answer[spans[k].start : spans[k].end],
                unit=unit.text,
                char_span=(spans[k].start, spans[k].end),
                instances=owned[k],
            )
            for k in closing_order(spans)
        ]
        return Truth(
            uid=f"world/{self.number:03d}/{task}",
            task_id=task,
            image=f"{self.number:03d}.png",
            image_id=self.number,
            width=SIDE,
            height=SIDE,
            question=question,
            answer=answer,
            raw=render_answer(answer, spans).text,
            references=[answer],
            triplets=triplets,
        )

    def truths(self) -> list[Truth]:
        a, b, c = self.names
        listed = f"{a},{b},{c}."
        every = [(name, [k]) for k, name in enumerate(self.names)]
        sentence = f"There is a {a} next to a {b} in scene {self.number}."
        target, mask = [("target", [0])], Unit.MASK
        return [
            self.truth("T01", "Describe the picture.", f"A {a}, a {b} and a {c} on grey."),
            self.truth("T03", f"What colour is the {a.split()[1]}?", f"The answer is {a[:3]}."),
            self.truth("T06", "What is at [VPT]?", f"the {b} of scene {self.number}"),
            self.truth("T13", "Find all objects.", listed, every),
            self.truth("T14", "Segment all objects.", listed, every, mask),
            self.truth("T17", f"Locate the {a}.", "target.", target),
            self.truth("T18", f"Segment the {a}.", "target.", target, mask),
            self.truth("T19", "Describe and ground.", sentence, every[:2]),
            self.truth("T20", "Describe and ground.", sentence, every[:2], mask),
            self.truth("T21", "Box what [VPT] marks.", f"{c}.", [(c, [2])]),
            self.truth("T22", "Segment what [VPT] marks.", f"{c}.", [(c, [2])], mask),
        ]


def world(scenes: int = 4) -> list[Truth]:
    return [truth for number in range(scenes) for truth in Scene(number).truths()]


def perfect(truth: Truth) -> Prediction:
    return Prediction(
        uid=truth.uid,
        task_id=truth.task_id,
        image=truth.image,
        width=truth.width,
        height=truth.height,
        raw=truth.raw,
        plain=truth.answer,
        finish="eos",
        n_tokens=7,
        triplets=truth.triplets,
    )


def shifted(truth: Truth, amount: float) -> Prediction:
    """The truth with every object moved to the right, with falling confidence."""
    pixels = round(amount)
    triplets = []
    for triplet in truth.triplets:
        moved = []
        for k, instance in enumerate(triplet.instances):
            score = 0.9 - 0.1 * k
            if instance.box is not None:
                x1, y1, x2, y2 = instance.box
                moved.append(Instance(box=(x1 + amount, y1, x2 + amount, y2), score=score))
            else:
                mask = load_mask(instance.rle, truth.height, truth.width)
                moved.append(masked(np.roll(mask, pixels, axis=1), score=score))
        triplets.append(replace(triplet, instances=moved))
    return replace(perfect(truth), triplets=triplets)


def by_uid(predictions) -> dict[str, Prediction]:
    return {prediction.uid: prediction for prediction in predictions}
