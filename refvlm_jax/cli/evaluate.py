"""`refvlm eval --config RECIPE --workdir DIR --data SPLIT=DIR ...`: predict, score, report."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refvlm_jax.config.resolve import load_config
from refvlm_jax.config.schema import RunConfig


@dataclass(frozen=True)
class Split:
    """The scored predictions of one held-out dataset."""

    name: str
    truths: list
    predictions: dict
    metrics: dict[str, dict[str, float]]
    """Task id -> metrics; `all` holds format validity over every task."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument("--config", required=True, help="the recipe the checkpoint was trained by")
    parser.add_argument("--workdir", required=True, type=Path, help="the run's folder")
    parser.add_argument("--data", required=True, nargs="+", metavar="SPLIT=DIR")
    parser.add_argument("--out", type=Path, help="where predictions go; default WORKDIR/eval")
    parser.add_argument("overrides", nargs="*", help="dotted.field=value")


def run(args: argparse.Namespace) -> int:
    """Scores the newest checkpoint of a run on held-out datasets and prints the table."""
    from refvlm_jax.ckpt.manager import load_params
    from refvlm_jax.eval.score import print_table

    config = load_config(args.config, args.overrides)
    params = load_params(args.workdir / "checkpoints")
    out = args.out or args.workdir / "eval"
    for item in args.data:
        name, _, folder = item.partition("=")
        if not folder:
            raise ValueError(f"--data {item!r}: expected SPLIT=DIR, for example val=data/val")
        print_table(evaluate(config, params, name, Path(folder), out).metrics, title=name)
    return 0


def evaluate(
    config: RunConfig, params: Mapping[str, np.ndarray], name: str, data: Path, out: Path
) -> Split:
    """Predicts and scores one held-out dataset; predictions stay in `out/name.jsonl`."""
    from data_pipelines.shards import DialogStore, read_manifest
    from refvlm_jax.cli.predict import make_engine, predict
    from refvlm_jax.cli.truths import select, truth_of
    from refvlm_jax.eval.records import write_records
    from refvlm_jax.eval.score import score

    store = DialogStore(data)
    dialogs = select((store[i] for i in range(len(store))), config.eval.limit)
    root = Path(read_manifest(data)["image_root"])
    engine = make_engine(config, params)
    predictions = list(predict(engine, config, dialogs, root, f"answering {name}"))
    truths = [truth_of(dialog) for dialog in dialogs]
    out.mkdir(parents=True, exist_ok=True)
    write_records(out / f"{name}.predictions.jsonl", predictions)
    write_records(out / f"{name}.truths.jsonl", truths)
    by_uid = {prediction.uid: prediction for prediction in predictions}
    return Split(name, truths, by_uid, score(truths, by_uid))
