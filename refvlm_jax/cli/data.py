"""`refvlm data {shapes,build,inspect,tasks}`: native files to VT-Instruct shards."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    commands = parser.add_subparsers(dest="data_command", required=True)
    shapes = commands.add_parser("shapes", help="render the shapes world in native formats")
    shapes.add_argument("--out", type=Path, required=True)
    shapes.add_argument("--level", type=int, choices=(1, 2, 3), default=1)
    shapes.add_argument("--train", type=int, default=8000, help="scenes")
    shapes.add_argument("--val", type=int, default=400, help="held-out scenes")
    shapes.add_argument("--val-combos", type=int, default=400, help="scenes with unseen pairs")
    shapes.add_argument("--seed", type=int, default=0)
    shapes.add_argument(
        "--all-formats", action="store_true", help="in the formats of recipe shapes_all too"
    )
    build = commands.add_parser("build", help="convert native files to shards")
    build.add_argument(
        "--recipe", choices=("shapes", "shapes_all", "coco", "refcoco"), required=True
    )
    build.add_argument("--root", type=Path, required=True, help="folder of the native files")
    build.add_argument("--split", default="train")
    build.add_argument("--out", type=Path, required=True)
    build.add_argument("--limit", type=int, help="records a source, for a first look")
    build.add_argument("--workers", type=int, default=2)
    inspect = commands.add_parser("inspect", help="print the first records of a built dataset")
    inspect.add_argument("dir", type=Path)
    inspect.add_argument("--limit", type=int, default=3)
    tasks = commands.add_parser("tasks", help="list the task types and where they come from")
    tasks.add_argument("--built", type=Path, help="a built dataset, to count its dialogues")


def run(args: argparse.Namespace) -> int:
    """Dispatches to the sub-command."""
    commands = {"shapes": _shapes, "build": _build, "inspect": _inspect, "tasks": _tasks}
    return commands[args.data_command](args)


def _shapes(args: argparse.Namespace) -> int:
    from data_pipelines.shapes_world import generate
    from data_pipelines.shapes_world.formats import write_formats

    scenes = {"train": args.train, "val": args.val, "val_combos": args.val_combos}
    generate(args.out, level=args.level, scenes=scenes, seed=args.seed)
    if args.all_formats:
        for split in scenes:
            write_formats(args.out, split)
    return 0


def _build(args: argparse.Namespace) -> int:
    import data_pipelines.build as builder

    recipe = {
        "shapes": builder.shapes_world_recipe,
        "shapes_all": builder.shapes_all_recipe,
        "coco": builder.coco_recipe,
        "refcoco": builder.refcoco_recipe,
    }[args.recipe](args.root, args.split)
    builder.build(recipe, args.out, limit=args.limit, workers=args.workers)
    return 0


def _tasks(args: argparse.Namespace) -> int:
    from rich.console import Console

    from data_pipelines.task_table import as_table, task_rows

    console = Console()
    # A list that is read by another program keeps a line a task.
    console = console if console.is_terminal else Console(width=400)
    console.print(as_table(task_rows(args.built)))
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from rich import print as show

    from data_pipelines.shards import DialogStore, read_manifest

    manifest = read_manifest(args.dir)
    show(manifest["counts"])
    store = DialogStore(args.dir)
    for index in range(min(args.limit, len(store))):
        show(store[index])
    return 0
