"""`refvlm eval --config RECIPE --workdir DIR --data SPLIT=DIR ...`: predict, score, report."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.catalog import load_catalog
from data_pipelines.shards import DialogStore, read_manifest
from data_pipelines.tasks import TASKS
from refvlm_jax.ckpt.manager import checkpoints_of, load_params
from refvlm_jax.cli.data_setup import answer_style, majority_answer
from refvlm_jax.cli.predict import make_engine, predict
from refvlm_jax.cli.truths import Question, select, truth_of
from refvlm_jax.config.resolve import load_config
from refvlm_jax.config.schema import RunConfig
from refvlm_jax.eval.baselines import Baseline, trivial_baselines
from refvlm_jax.eval.records import Prediction, Truth, write_records
from refvlm_jax.eval.score import ScoreTable, print_table, score, write_results
from refvlm_jax.train.compile_cache import use_compile_cache
from refvlm_jax.trp.tokens import Unit


@dataclass(frozen=True)
class Split:
    """One held-out dataset with a model's scored answers."""

    name: str
    image_root: Path
    questions: list[Question]
    truths: list[Truth]
    predictions: dict[str, Prediction]
    scores: ScoreTable
    trivial: dict[str, Baseline]
    """The best answer without a look at the picture, by task."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument("--config", required=True, help="the recipe the checkpoint was trained by")
    parser.add_argument("--workdir", required=True, type=Path, help="a run's folder, or an import")
    parser.add_argument("--data", required=True, nargs="+", metavar="SPLIT=DIR")
    parser.add_argument("--train-data", type=Path, help="for the majority-answer baseline")
    parser.add_argument("--out", type=Path, help="where predictions go; default WORKDIR/eval")
    parser.add_argument("--set", dest="overrides", nargs="*", default=[], help="dotted.field=value")


def run(args: argparse.Namespace) -> int:
    """Scores the newest checkpoint of a run on held-out datasets and prints the table."""
    config = load_config(args.config, args.overrides)
    params = load_params(checkpoints_of(args.workdir))
    out = args.out or args.workdir / "eval"
    majority = majority_answer(args.train_data) if args.train_data else None
    for item in args.data:
        name, _, folder = item.partition("=")
        if not folder:
            raise ValueError(f"--data {item!r}: expected SPLIT=DIR, for example val=data/val")
        split = evaluate(config, params, name, Path(folder), out, majority=majority)
        write_results(out / name, split.scores)
        print_table(split.scores, title=name)
    return 0


def evaluate(
    config: RunConfig,
    params: Mapping[str, np.ndarray],
    name: str,
    data: Path,
    out: Path,
    *,
    majority: str | None = None,
    limit: int | Mapping[str, int] | None = None,
    tasks: Sequence[str] = (),
) -> Split:
    """Answers and scores one held-out dataset; records stay in `out/name.*.jsonl`.

    Tasks whose answers need a decoder that the model lacks are left out, unless they are named; so
    are dialogues without a picture.

    Args:
      majority: most frequent training answer, for the VQA baseline.
      limit: questions a task, of every or by task id, instead of `eval.limit`.
      tasks: only these task ids, instead of `eval.tasks`; empty for all.
    """
    use_compile_cache()
    tasks = tasks or config.eval.tasks
    store = DialogStore(data)
    wanted = load_catalog(store).numbers_of(set(tasks or answerable(config)))
    chosen = (dialog for i in wanted if (dialog := store[i]).image is not None)
    questions = select(chosen, config.eval.limit if limit is None else limit)
    root = Path(read_manifest(data)["image_root"])
    engine = make_engine(config, params)
    out.mkdir(parents=True, exist_ok=True)
    note, depth_folder = f"answering {name}", out / f"{name}.depth"
    predictions = list(predict(engine, config, questions, root, note, depth_folder=depth_folder))
    truths = [truth_of(question, answer_style(config.data), root) for question in questions]
    write_records(out / f"{name}.predictions.jsonl", predictions)
    write_records(out / f"{name}.truths.jsonl", truths)
    by_uid = {prediction.uid: prediction for prediction in predictions}
    trivial = trivial_baselines(truths, majority_answer=majority)
    shown = {"trivial": {task: baseline.metrics for task, baseline in trivial.items()}}
    scores = score(truths, by_uid, baselines=shown)
    return Split(name, root, questions, truths, by_uid, scores, trivial)


def answerable(config: RunConfig) -> list[str]:
    """Tasks whose answers need no decoder that the model lacks."""
    missing = {
        Unit.KEYPOINT: config.model.keypoint is None,
        Unit.DEPTH: config.model.depth is None,
    }
    return [task.id for task in TASKS.values() if not missing.get(task.unit, False)]
