"""The report of a run as one self-contained HTML file: curves, scores, and answers in pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from refvlm_jax.eval.answer_html import answer_html, question_html
from refvlm_jax.eval.curves import loss_curves
from refvlm_jax.eval.judge import Judgement, judge
from refvlm_jax.eval.overlay import RegionPrompt, image_element, overlay_svg
from refvlm_jax.eval.overlay_units import depth_range
from refvlm_jax.eval.record_types import Prediction, Truth
from refvlm_jax.eval.records import write_text
from refvlm_jax.eval.score import ALL, ScoreTable, shown, task_title
from refvlm_jax.eval.tasks import TASKS

Sample = tuple[Truth, Prediction | None, np.ndarray]
"""A question, the answer (None if missing), and its picture uint8 [H, W, 3]."""
_COUNTS = ("n", "n_missing", "n_parse_fail", "n_unknown", "n_images")
_TEN = ("cider",)  # metrics on a scale of 10


@dataclass(frozen=True)
class Headline:
    """The number a task is judged by."""

    title: str
    metric: str
    value: float
    bounds: tuple[float, float] | None
    baselines: list[float | None]
    samples: int
    missing: int

    @property
    def share(self) -> float:
        """Length of the bar, 0 to 1."""
        return self.share_of(self.value)

    @property
    def span(self) -> tuple[float, float] | None:
        """The interval as shares."""
        return self.bounds and (self.share_of(self.bounds[0]), self.share_of(self.bounds[1]))

    @property
    def interval(self) -> str:
        """The interval in figures."""
        return _interval(self.bounds)

    def share_of(self, value: float) -> float:
        """A value of this metric as a share of its maximum."""
        return min(max(value / (10.0 if self.metric in _TEN else 1.0), 0.0), 1.0)


@dataclass(frozen=True)
class Row:
    """One metric of the score table."""

    task: str
    """Empty but in the first row of a task."""
    metric: str
    headline: bool
    value: str
    interval: str
    baselines: list[str]


@dataclass(frozen=True)
class Card:
    """One sample with its two pictures."""

    truth: Truth
    prediction: Prediction | None
    task: str
    verdict: Judgement
    question: str
    answer: str
    expected: str
    found_svg: str
    truth_svg: str


def write_report(
    path: Path,
    *,
    title: str,
    run_info: Mapping[str, Any],
    metrics_history: Sequence[Mapping[str, float]],
    scores: ScoreTable | Mapping[str, Any],
    samples: Sequence[Sample],
    baselines: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
    prompts: Mapping[str, Sequence[RegionPrompt]] | None = None,
    subtitle: str = "",
) -> None:
    """Writes the report, atomically; the file refers to nothing outside itself.

    Args:
      path: of the HTML file; its folder must exist.
      title: of the page.
      run_info: name -> value, shown as a list of facts.
      metrics_history: records of `metrics.jsonl`.
      scores: a score table, or several by the name of their split; plain task -> metric -> value
        is understood too.
      samples: shown in this order; pictures may have any size.
      baselines: name -> task -> metric -> value, for tables that carry none of their own.
      prompts: uid -> regions the question pointed at.
      subtitle: one line below the title.
    """
    splits = _splits(scores, baselines or {})
    page = _template().render(
        title=title,
        subtitle=subtitle,
        run_info={key: str(value) for key, value in run_info.items()},
        curves=loss_curves(metrics_history),
        splits=[
            {"name": name, "headlines": _headlines(table), "rows": _rows(table), "table": table}
            for name, table in splits.items()
        ],
        cards=[_card(k, sample, prompts or {}) for k, sample in enumerate(samples)],
        tasks=sorted({(truth.task_id, task_title(truth.task_id)) for truth, _, _ in samples}),
    )
    write_text(path, page)


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html.j2")


def _splits(
    scores: Mapping[str, Any], baselines: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> dict[str, ScoreTable]:
    """Score tables by split name; a single table has the empty name."""
    values = [value for group in scores.values() for value in group.values()]
    nested = bool(values) and all(isinstance(value, Mapping) for value in values)
    groups = scores if nested else {"": scores}
    return {name: _as_table(group, baselines) for name, group in groups.items()}


def _as_table(
    scores: Mapping[str, Any], baselines: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> ScoreTable:
    intervals = scores.intervals if isinstance(scores, ScoreTable) else {}
    own = scores.baselines if isinstance(scores, ScoreTable) else {}
    return ScoreTable(scores, intervals, own or baselines)


def _headlines(table: ScoreTable) -> list[Headline]:
    wanted = [(task, TASKS[task].headline) for task in table if task in TASKS]
    wanted += [(ALL, "format_valid")]
    return [
        Headline(
            title="Format, all tasks" if task == ALL else task_title(task),
            metric=metric,
            value=table[task][metric],
            bounds=table.intervals.get(task, {}).get(metric),
            baselines=[table.baseline(name, task, metric) for name in table.baselines],
            samples=int(table[task].get("n", 0)),
            missing=int(table[task].get("n_missing", 0)),
        )
        for task, metric in wanted
        if metric in table.get(task, {})
    ]


def _interval(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.3f}\u2013{bounds[1]:.3f}"


def _rows(table: ScoreTable) -> list[Row]:
    rows = []
    for task, values in table.items():
        title = "All tasks" if task == ALL else task_title(task)
        names = [name for name in values if name not in _COUNTS]
        for place, name in enumerate(names):
            bounds = table.intervals.get(task, {}).get(name)
            others = (table.baseline(other, task, name) for other in table.baselines)
            rows.append(
                Row(
                    task=title if place == 0 else "",
                    metric=name,
                    headline=task in TASKS and TASKS[task].headline == name,
                    value=shown(values[name], name),
                    interval=_interval(bounds),
                    baselines=["" if other is None else shown(other, name) for other in others],
                )
            )
    return rows


def _card(number: int, sample: Sample, prompts: Mapping[str, Sequence[RegionPrompt]]) -> Card:
    truth, prediction, image = sample
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{image.dtype}{list(image.shape)}"
        raise ValueError(f"picture of {truth.uid!r} is {found}; expected uint8 [H, W, 3]")
    width, height, name = truth.width, truth.height, f"picture-{number}"
    picture = image_element(image, name, width, height)
    shown_prompts, span = prompts.get(truth.uid, ()), depth_range(truth)
    return Card(
        truth=truth,
        prediction=prediction,
        task=task_title(truth.task_id),
        verdict=judge(truth, prediction),
        question=question_html(truth.question),
        answer=answer_html(prediction.plain, prediction.triplets) if prediction else "",
        expected=answer_html(truth.answer, truth.triplets),
        found_svg=overlay_svg(
            prediction,
            picture,
            width,
            height,
            label="prediction",
            prompts=shown_prompts,
            depth_span=span,
        ),
        truth_svg=overlay_svg(
            truth,
            f'<use href="#{name}"/>',
            width,
            height,
            label="truth",
            prompts=shown_prompts,
            depth_span=span,
        ),
    )
