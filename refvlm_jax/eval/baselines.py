"""Trivial answers to compare a model with; each needs no look at the picture."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from refvlm_jax.eval.depth_maps import first_depth, load_depth, within
from refvlm_jax.eval.record_types import Instance, Prediction, Triplet, Truth
from refvlm_jax.eval.scorers import depth, keypoints, rec, res, vqa
from refvlm_jax.eval.tasks import TASKS
from refvlm_jax.rle import encode
from refvlm_jax.trp.render import render_answer
from refvlm_jax.trp.spans import TextSpan
from refvlm_jax.trp.tokens import Unit

_PHRASE = "target"


@dataclass(frozen=True)
class Baseline:
    """A trivial way to answer a task."""

    what: str
    """In words, for the score table."""
    metrics: dict[str, float]


def trivial_baselines(
    truths: Sequence[Truth], *, majority_answer: str | None = None
) -> dict[str, Baseline]:
    """The best trivial answer by task id, for tasks that have one.

    One box (REC and regions to boxes): centred, half of each side. One mask: the better of that box
    and the full picture. Questions: always `majority_answer`, which should come from the training
    set; without it the most frequent answer of `truths` themselves, an optimistic baseline. Figures:
    the mean pose in every true box, a strong one, since it is told where everybody is. Depth: the
    mean of all pictures, as one number or one for every place. Poses and depths are averaged over
    `truths` themselves.
    """
    chosen = {}
    for task in sorted({truth.task_id for truth in truths} & TASKS.keys()):
        own = [truth for truth in truths if truth.task_id == task]
        options = [
            Baseline(what, TASKS[task].score(own, {t.uid: answer(t) for t in own}))
            for what, answer in _options(task, own, majority_answer)
        ]
        if options:
            headline = TASKS[task].headline
            chosen[task] = max(options, key=lambda baseline: baseline.metrics[headline])
    return chosen


Answerer = Callable[[Truth], Prediction]


def _options(
    task: str, truths: Sequence[Truth], majority: str | None
) -> list[tuple[str, Answerer]]:
    scorer = TASKS[task].score
    if scorer is rec.score:
        return [("centre box", centre_box)]
    if scorer is res.score:
        return [("full picture", full_mask), ("centre box", centre_mask)]
    if scorer is vqa.score:
        text = most_frequent_answer(truths) if majority is None else majority
        name = "most frequent answer" if majority is None else "most frequent training answer"
        return [(name, lambda truth: constant_answer(truth, text))]
    if scorer is keypoints.score:
        pose = mean_pose(truths)
        return [("mean pose in the true box", lambda truth: posed(truth, pose))]
    if scorer is depth.score:
        layout = mean_depth(truths)
        flat = np.full_like(layout, np.nanmean(layout))
        return [
            ("mean depth", lambda truth: constant_depth(truth, flat)),
            ("mean depth of each place", lambda truth: constant_depth(truth, layout)),
        ]
    return []


def centre_box(truth: Truth, fraction: float = 0.5) -> Prediction:
    """A centred box with `fraction` of each side of the picture."""
    return _object(truth, Unit.BOX, Instance(box=_centred(truth, fraction)))


def centre_mask(truth: Truth, fraction: float = 0.5) -> Prediction:
    """The pixels of a centred box with `fraction` of each side."""
    x1, y1, x2, y2 = np.rint(_centred(truth, fraction)).astype(int)
    mask = np.zeros((truth.height, truth.width), np.bool_)
    mask[y1:y2, x1:x2] = True
    return _object(truth, Unit.MASK, _masked(mask))


def full_mask(truth: Truth) -> Prediction:
    """Every pixel of the picture."""
    return _object(truth, Unit.MASK, _masked(np.ones((truth.height, truth.width), np.bool_)))


def mean_pose(truths: Sequence[Truth]) -> np.ndarray:
    """[K, 2] mean place of every labelled joint as a fraction of its box; its centre without any."""
    total, count = np.zeros((1, 2)), np.zeros((1, 1))
    for truth in truths:
        for figure in keypoints.figures(truth):
            points, box = np.array(figure.keypoints), np.array(keypoints.box_of(figure))
            labelled = points[:, 2:] > 0
            share = (points[:, :2] - box[:2]) / np.maximum(box[2:] - box[:2], 1e-6)
            total, count = total + np.where(labelled, share, 0.0), count + labelled
    return np.where(count > 0, total / np.maximum(count, 1), 0.5)


def posed(truth: Truth, pose: np.ndarray) -> Prediction:
    """The same pose in the box of every annotated figure."""
    found = []
    for figure in keypoints.figures(truth):
        box = np.array(keypoints.box_of(figure))
        points = box[:2] + pose * (box[2:] - box[:2])
        found.append(Instance(keypoints=[[*p, 1.0] for p in points.tolist()]))
    return _object(truth, Unit.KEYPOINT, *found)


def mean_depth(truths: Sequence[Truth], cells: int = 32) -> np.ndarray:
    """[cells, cells] mean depth of all pictures by place, pictures stretched to one size."""
    total, count = np.zeros((cells, cells)), np.zeros((cells, cells))
    for truth in truths:
        if (target := first_depth(truth)) is None:
            raise ValueError(f"truth {truth.uid!r} of task {truth.task_id} has no depth map")
        values = load_depth(target, truth.width, truth.height)
        rows, cols = (((np.arange(cells) + 0.5) * n / cells).astype(int) for n in values.shape)
        values = values[rows[:, None], cols]
        known = np.isfinite(values)
        total, count = total + np.where(known, values, 0.0), count + known
    overall = total.sum() / max(count.sum(), 1)
    return np.where(count > 0, total / np.maximum(count, 1), overall)


def constant_depth(truth: Truth, layout: np.ndarray) -> Prediction:
    """The same depth for every picture, stretched to its size."""
    rows, cols = ((np.arange(n) * len(layout) / n).astype(int) for n in (truth.height, truth.width))
    return _object(truth, Unit.DEPTH, Instance(depth=within(layout[rows[:, None], cols])))


def constant_answer(truth: Truth, text: str) -> Prediction:
    """The same text for every question."""
    return _prediction(truth, text, [], [])


def most_frequent_answer(truths: Sequence[Truth]) -> str:
    """The most frequent answer, ties broken alphabetically; empty without truths."""
    counts = Counter(truth.answer for truth in truths)
    return min(counts, key=lambda answer: (-counts[answer], answer), default="")


def _centred(truth: Truth, fraction: float) -> tuple[float, float, float, float]:
    w, h = truth.width, truth.height
    low, high = (1.0 - fraction) / 2.0, (1.0 + fraction) / 2.0
    return low * w, low * h, high * w, high * h


def _masked(mask: np.ndarray) -> Instance:
    return Instance(rle={"size": list(mask.shape), "counts": encode(mask).decode("ascii")})


def _object(truth: Truth, unit: Unit, *found: Instance) -> Prediction:
    span = (0, len(_PHRASE))
    triplet = Triplet(phrase=_PHRASE, unit=unit.text, char_span=span, instances=list(found))
    return _prediction(truth, f"{_PHRASE}.", [TextSpan(*span, unit, len(found))], [triplet])


def _prediction(
    truth: Truth, plain: str, spans: list[TextSpan], triplets: list[Triplet]
) -> Prediction:
    return Prediction(
        uid=truth.uid,
        task_id=truth.task_id,
        image=truth.image,
        width=truth.width,
        height=truth.height,
        raw=render_answer(plain, spans).text,
        plain=plain,
        finish="eos",
        n_tokens=0,
        triplets=triplets,
    )
