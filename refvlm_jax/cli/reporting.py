"""The HTML report of a run: curves, scores of every split, and held-out pictures with answers."""

import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from data_pipelines.images import load_image
from refvlm_jax.cli.evaluate import Split
from refvlm_jax.cli.truths import drawn_prompts
from refvlm_jax.config.schema import RunConfig
from refvlm_jax.eval.report import Sample, write_report
from refvlm_jax.train.metrics import read_metrics

# Task ids and how many cards of each a split shows: what can be drawn comes first.
CARDS = {
    "T17": 6, "T18": 6, "T13": 3, "T14": 3, "T19": 3, "T20": 3, "T21": 2, "T22": 2, "T03": 3,
    "T23": 4, "T24": 2, "T25": 4, "T01": 2, "T06": 1, "T08": 1,
}  # fmt: skip


def write_html(
    path: Path, config: RunConfig, workdir: Path, splits: Mapping[str, Split], seconds: float
) -> None:
    """Writes the report of a finished run from its metrics and its scored splits."""
    first = next(iter(splits.values()))
    chosen = _chosen(first)
    write_report(
        path,
        title=f"{config.name}: answers on held-out pictures",
        subtitle="Text and decoded references of a REF-VLM beside the truth",
        run_info={
            "recipe": config.name,
            "steps": config.train.steps,
            "rows a step": config.data.batch_size,
            "training time": f"{seconds / 60:.1f} minutes",
            "jax": version("jax"),
            "date": time.strftime("%Y-%m-%d"),
        },
        metrics_history=read_metrics(workdir / "metrics.jsonl"),
        scores={name: split.scores for name, split in splits.items()},
        samples=[_sample(first, index) for index in chosen],
        prompts={
            question.uid: drawn_prompts(question)
            for question in map(first.questions.__getitem__, chosen)
        },
    )


def _chosen(split: Split) -> list[int]:
    """The first samples of each task, which the hash order of evaluation makes a random draw."""
    left = dict(CARDS)
    chosen = []
    for index, truth in enumerate(split.truths):
        if left.get(truth.task_id, 0) > 0:
            left[truth.task_id] -= 1
            chosen.append(index)
    order = list(CARDS)
    return sorted(chosen, key=lambda k: (order.index(split.truths[k].task_id), k))


def _sample(split: Split, index: int) -> Sample:
    truth, image = split.truths[index], split.questions[index].dialog.image
    assert image is not None
    return truth, split.predictions.get(truth.uid), load_image(image, split.image_root)
