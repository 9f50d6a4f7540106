"""`refvlm quickstart`: render a world, build shards, train, evaluate, and write the report.

Every stage leaves its result in the run folder and is skipped when that is already there, so a second
call resumes an interrupted run or says that everything is done.
"""

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from refvlm_jax.config.resolve import load_config
from refvlm_jax.config.schema import RunConfig, WorldConfig

DEFAULT = "shapes_tiny"
"""Name of the recipe that runs when none is given."""
HELD_OUT = ("val", "val_combos")
# Key in metrics.json -> task and metric, by split.
HEADLINE = {
    "val": {
        "rec_acc50": ("T17", "acc50"),
        "res_ciou": ("T18", "ciou"),
        "det_ap50": ("T13", "ap50"),
        "vqa_acc": ("T03", "accuracy"),
        "format_valid": ("all", "format_valid"),
        # Only of recipes with these decoders.
        "keypoint_ap": ("T23", "ap"),
        "keypoint_pck": ("T23", "pck10"),
        "depth_abs_rel": ("T25", "abs_rel"),
        "depth_delta1": ("T25", "delta1"),
    },
    "val_combos": {"rec_acc50_heldout_combos": ("T17", "acc50")},
}
BESIDE = 3
"""Tasks without a headline number are asked this many times fewer questions."""
UNTRAINED_LIMIT = 32
"""Questions a task for the untrained baseline, which always writes to the end of its room."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument("--config", default=f"configs/{DEFAULT}.py", help="recipe with a world")
    parser.add_argument("--fast", action="store_true", help="the same path in two minutes")
    parser.add_argument(
        "--workdir", type=Path, help="default runs/quickstart, or runs/NAME of another recipe"
    )
    parser.add_argument("overrides", nargs="*", help="dotted.field=value")


def run(args: argparse.Namespace) -> int:
    """Runs every stage that is not done yet."""
    config = load_config(args.config, args.overrides)
    name = "quickstart" if config.name == DEFAULT else config.name
    default = Path("runs") / (f"{name}-fast" if args.fast else name)
    return quickstart(fast(config) if args.fast else config, args.workdir or default)


def fast(config: RunConfig) -> RunConfig:
    """The same recipe cut down to a first look: its numbers mean nothing."""
    assert config.world is not None
    return replace(
        config,
        name=f"{config.name}_fast",
        world=replace(config.world, train=400, val=40, val_combos=40),
        data=replace(config.data, opening_steps=min(config.data.opening_steps, 10)),
        optim=replace(config.optim, warmup_steps=10),
        train=replace(config.train, steps=40, log_every=5),
        eval=replace(config.eval, limit=12, max_new_tokens=48),
    )


def quickstart(config: RunConfig, workdir: Path) -> int:
    """All stages for one recipe; the exit code of training if that was interrupted."""
    from refvlm_jax.cli.train import train

    if config.world is None:
        raise ValueError(f"recipe {config.name} has no `world` section; use `refvlm train` instead")
    workdir.mkdir(parents=True, exist_ok=True)
    if (workdir / "metrics.json").is_file() and (workdir / "report.html").is_file():
        print("already done; delete the folder to start over")
        return summary(workdir)
    folders = prepare(config.world, workdir)
    config = replace(config, data=replace(config.data, path=str(folders["train"])))
    if code := train(config, workdir):
        return code
    assess(config, workdir, folders)
    return summary(workdir)


def prepare(world: WorldConfig, workdir: Path) -> dict[str, Path]:
    """Native files and shards of every split; folders of the built datasets by split."""
    from data_pipelines.build import build, shapes_world_recipe
    from data_pipelines.shapes_world import generate

    scenes = {"train": world.train, "val": world.val, "val_combos": world.val_combos}
    native = workdir / "world"
    generate(native, level=world.level, scenes=scenes, seed=world.seed)
    folders = {split: workdir / "vt_instruct" / split for split in scenes}
    for split, folder in folders.items():
        build(shapes_world_recipe(native, split), folder, workers=os.cpu_count() or 1)
    return folders


def assess(config: RunConfig, workdir: Path, folders: Mapping[str, Path]) -> None:
    """Scores the trained and the untrained model and writes metrics.json and report.html."""
    from refvlm_jax.ckpt.manager import load_params, read_meta, step_folder
    from refvlm_jax.cli.data_setup import majority_answer
    from refvlm_jax.cli.evaluate import evaluate
    from refvlm_jax.cli.reporting import write_html

    checkpoints, out = workdir / "checkpoints", workdir / "eval"
    params, majority = load_params(checkpoints), majority_answer(folders["train"])
    splits = {
        name: evaluate(
            config, params, name, folders[name], out,
            majority=majority, limit=questions(config, name), tasks=asked(config, name),
        )
        for name in HELD_OUT
    }  # fmt: skip
    fresh = {
        name: evaluate(
            config, untrained(config), f"{name}_untrained", folders[name], out,
            limit=UNTRAINED_LIMIT,
            tasks=sorted(_headline_tasks(name) & splits[name].scores.keys()),
        )
        for name in HELD_OUT
    }  # fmt: skip
    for name, split in splits.items():
        split.scores.baselines["untrained"] = fresh[name].scores
    seconds = read_meta(step_folder(checkpoints))["train_seconds"]
    result = {
        **{key: row["value"] for key, row in headline(splits).items()},
        "train_seconds": seconds,
        "config": config.name,
        "baselines": headline(splits),
        "splits": {name: split.scores for name, split in splits.items()},
    }
    write_html(workdir / "report.html", config, workdir, splits, seconds)
    write_json(workdir / "metrics.json", result)


def asked(config: RunConfig, name: str) -> list[str]:
    """Task ids asked of a held-out split: of unseen pairs only what has a headline number anywhere."""
    from refvlm_jax.cli.evaluate import answerable

    every = set(config.eval.tasks or answerable(config))
    return sorted(every if name == HELD_OUT[0] else every & _headline_tasks(*HELD_OUT))


def questions(config: RunConfig, name: str) -> dict[str, int]:
    """Questions by task of a held-out split."""
    most, headline = config.eval.limit, _headline_tasks(*HELD_OUT)
    fewer = -(-most // BESIDE)
    return {task: most if task in headline else fewer for task in asked(config, name)}


def _headline_tasks(*names: str) -> set[str]:
    """Tasks that have a headline number on any of these splits."""
    return {task for name in names for task, _ in HEADLINE[name].values()} - {"all"}


def untrained(config: RunConfig) -> dict[str, Any]:
    """Fresh parameters, as training would start from."""
    import jax

    from refvlm_jax.cli.run import build_model
    from refvlm_jax.train.model_def import define

    model = define(lambda rngs: build_model(config, rngs))
    return jax.device_get(jax.jit(model.init)(jax.random.key(config.seed)))


def headline(splits: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The few numbers a run is judged by, each with what trivial answers score."""
    rows: dict[str, dict[str, Any]] = {}
    for name, wanted in HEADLINE.items():
        split = splits[name]
        present = {key: row for key, row in wanted.items() if row[0] in split.scores}
        for key, (task, metric) in present.items():
            row: dict[str, Any] = {"value": split.scores[task][metric]}
            if (fresh := split.scores.baseline("untrained", task, metric)) is not None:
                row["untrained"] = fresh
            if task in split.trivial:
                row["trivial"] = split.trivial[task].metrics[metric]
                row["what"] = split.trivial[task].what
            rows[key] = row
    return rows


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON atomically."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")
    os.replace(temporary, path)


def summary(workdir: Path) -> int:
    """Prints the headline table and the path of the report."""
    from rich.console import Console
    from rich.table import Table

    result = json.loads((workdir / "metrics.json").read_text(encoding="utf-8"))
    table = Table(
        "metric", "value", "untrained", "trivial", "trivial baseline", title=result["config"]
    )
    for name, value in result.items():
        if isinstance(value, float):
            row = result["baselines"].get(name, {})
            shown = [f"{row[k]:.3f}" if k in row else "" for k in ("untrained", "trivial")]
            table.add_row(name, f"{value:.3f}", *shown, row.get("what", ""))
    Console().print(table)
    print(f"report: {workdir / 'report.html'}")
    return 0
