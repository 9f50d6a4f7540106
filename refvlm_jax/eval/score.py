"""Scores a set of answers task by task, with intervals and baselines, as table and JSON."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from refvlm_jax.eval.bootstrap import ratio_interval
from refvlm_jax.eval.record_types import Prediction, Truth
from refvlm_jax.eval.records import write_text
from refvlm_jax.eval.scorers import format as format_scorer
from refvlm_jax.eval.scorers.pairing import Predictions, pair
from refvlm_jax.eval.tasks import TASKS, Terms, format_terms

ALL = "all"
"""Key of the numbers over every task: format compliance."""
TaskMetrics = Mapping[str, Mapping[str, float]]
"""Task id -> metric -> value."""
Interval = tuple[float, float]


class ScoreTable(dict[str, dict[str, float]]):
    """Task id -> metric -> value, `all` for every task; a dict, so that it is plain JSON as it is.

    Attributes:
      intervals: task id -> metric -> 95% bootstrap interval, for metrics that are ratios of sums.
      baselines: name -> task id -> metric -> value.
    """

    def __init__(
        self,
        metrics: TaskMetrics,
        intervals: Mapping[str, Mapping[str, Interval]] | None = None,
        baselines: Mapping[str, TaskMetrics] | None = None,
    ):
        super().__init__({task: dict(values) for task, values in metrics.items()})
        self.intervals = {task: dict(v) for task, v in (intervals or {}).items()}
        self.baselines = dict(baselines or {})

    def baseline(self, name: str, task: str, metric: str) -> float | None:
        """One number of a baseline, None where it was not measured."""
        return self.baselines.get(name, {}).get(task, {}).get(metric)


def score(
    truths: Sequence[Truth],
    predictions: Predictions,
    *,
    baselines: Mapping[str, TaskMetrics] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> ScoreTable:
    """Scores predictions by uid against every truth; a missing prediction is wrong.

    Predictions of other uids are left out and counted as `n_unknown` under `all`.

    Args:
      truths: the complete test set.
      predictions: by uid.
      baselines: name -> metrics of other answers to the same truths, for the table.
      resamples: of the bootstrap; 0 leaves intervals out.
      seed: of the bootstrap.

    Raises:
      ValueError: records that do not belong together, or a truth without what its task asks for.
    """
    by_task: dict[str, list[Truth]] = defaultdict(list)
    for truth in truths:
        by_task[truth.task_id].append(truth)
    metrics: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, Interval]] = {}
    for task in sorted(by_task):
        metrics[task] = _task_metrics(task, by_task[task], predictions)
        intervals[task] = _intervals(_terms(task), by_task[task], predictions, resamples, seed)
    unknown = len(predictions.keys() - {truth.uid for truth in truths})
    metrics[ALL] = format_scorer.score(truths, predictions) | {"n_unknown": unknown}
    intervals[ALL] = _intervals(format_terms, truths, predictions, resamples, seed)
    return ScoreTable(metrics, intervals, baselines)


def _task_metrics(task: str, truths: Sequence[Truth], predictions: Predictions) -> dict[str, float]:
    scorer = TASKS.get(task)
    metrics = scorer.score(truths, predictions) if scorer else {}
    form = format_scorer.score(truths, predictions)
    shared = ("format_valid", "n", "n_missing", "n_parse_fail")
    return metrics | {name: form[name] for name in shared}


def _terms(task: str) -> Callable[[Truth, Prediction | None], Terms]:
    scorer = TASKS.get(task)

    def terms(truth: Truth, prediction: Prediction | None) -> Terms:
        own = scorer.terms(truth, prediction) if scorer else {}
        return {**own, **format_terms(truth, prediction)}

    return terms


def _intervals(
    terms_of: Callable[[Truth, Prediction | None], Terms],
    truths: Sequence[Truth],
    predictions: Predictions,
    resamples: int,
    seed: int,
) -> dict[str, Interval]:
    if not resamples or not truths:
        return {}
    pairs = pair(truths, predictions)
    terms = [terms_of(truth, prediction) for truth, prediction in pairs]
    images = [truth.image for truth, _ in pairs]
    return {
        name: ratio_interval(
            [sample[name][0] for sample in terms],
            [sample[name][1] for sample in terms],
            images,
            resamples=resamples,
            seed=seed,
        )
        for name in terms[0]
    }


def print_table(
    metrics: TaskMetrics | ScoreTable, title: str = "", console: Console | None = None
) -> None:
    """Prints every metric with its interval and the baselines; counts of failures only if any."""
    (console or Console()).print(text_table(metrics, title))


def text_table(metrics: TaskMetrics | ScoreTable, title: str = "") -> Table:
    """The table `print_table` shows."""
    scores = metrics if isinstance(metrics, ScoreTable) else ScoreTable(metrics)
    table = Table(title=title or None, title_justify="left")
    table.add_column("task")
    table.add_column("metric", no_wrap=True)
    for name in ("value", "95% interval", *scores.baselines):
        table.add_column(name, justify="right")
    for task, values in scores.items():
        title = f"{task_title(task)}, n={values.get('n', 0):.0f}"
        rows = [(k, v) for k, v in values.items() if k != "n" and (v or not k.startswith("n_"))]
        for row, (name, value) in enumerate(rows):
            bounds = scores.intervals.get(task, {}).get(name)
            others = (scores.baseline(other, task, name) for other in scores.baselines)
            table.add_row(
                title if row == 0 else "",
                name,
                shown(value, name),
                f"{bounds[0]:.3f} - {bounds[1]:.3f}" if bounds else "",
                *("" if other is None else shown(other, name) for other in others),
            )
        table.add_section()
    return table


def task_title(task: str) -> str:
    """A task id with its name in words."""
    return f"{task} {TASKS[task].title}" if task in TASKS else task


def shown(value: float, metric: str) -> str:
    """A metric as text: counts (`n`, `n_...`) whole, the rest with three decimals."""
    return f"{value:.0f}" if metric == "n" or metric.startswith("n_") else f"{value:.3f}"


def write_results(
    folder: Path,
    table: ScoreTable,
    *,
    manifest_sha: str = "",
    preds_sha: str = "",
    code_rev: str = "",
) -> None:
    """Writes `<task>.json` for every task into `folder`, each atomically.

    Args:
      folder: made if it does not exist.
      table: the scores.
      manifest_sha: SHA-256 of the truth file.
      preds_sha: SHA-256 of the prediction file.
      code_rev: revision of the code that predicted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    origin = {"manifest_sha": manifest_sha, "preds_sha": preds_sha, "code_rev": code_rev}
    for task in table:
        content = _result(table, task) | origin
        write_text(folder / f"{task}.json", json.dumps(content, indent=2, allow_nan=False) + "\n")


def _result(table: ScoreTable, task: str) -> dict[str, Any]:
    values = table[task]
    names = ("n", "n_missing", "n_parse_fail")
    return {
        "metrics": {name: value for name, value in values.items() if name not in names},
        **{name: values.get(name, 0) for name in names},
        "ci": {name: list(bounds) for name, bounds in table.intervals.get(task, {}).items()},
        "baselines": {
            name: dict(tasks[task]) for name, tasks in table.baselines.items() if task in tasks
        },
    }
