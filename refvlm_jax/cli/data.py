"""`refvlm data ...`: native files to VT-Instruct shards, and what is in them."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


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
    build.add_argument("--recipe", required=True, help="a name of `recipes`, or a .toml file")
    build.add_argument("--root", type=Path, help="folder of the native files")
    build.add_argument("--split", default="train")
    build.add_argument("--out", type=Path, required=True)
    build.add_argument("--limit", type=int, help="records a source, for a first look")
    build.add_argument("--workers", type=int, default=2, help="processes")
    build.add_argument(
        "--against", type=Path, nargs="*", default=[], metavar="DIR",
        help="built evaluation datasets whose pictures are kept out",
    )  # fmt: skip
    commands.add_parser("recipes", help="list the bundled recipes")
    doctor = commands.add_parser("doctor", help="check a built dataset")
    doctor.add_argument("dir", type=Path)
    doctor.add_argument("--sample", type=int, default=200, help="records that are decoded")
    doctor.add_argument("--tokenizer", help="tokenizer folder; the bundled one by default")
    inspect = commands.add_parser("inspect", help="show records of a dataset or of one shard")
    inspect.add_argument("shard", type=Path, help="a dataset's folder or one of its shards")
    inspect.add_argument("--start", type=int, default=0, help="first record")
    inspect.add_argument("--limit", type=int, default=3, help="records")
    inspect.add_argument("--html", type=Path, help="page to write: pictures, regions, tokens")
    inspect.add_argument("--tokenizer", help="tokenizer folder; the bundled one by default")
    export = commands.add_parser("export-tfds", help="copy datasets for TensorFlow Datasets")
    export.add_argument("dirs", type=Path, nargs="+", metavar="DIR", help="built datasets")
    export.add_argument("out", type=Path, metavar="OUT", help="data_dir of TFDS")
    export.add_argument("--pictures", action="store_true", help="copy the encoded pictures too")
    bench = commands.add_parser("bench", help="how fast the pipeline is, stage by stage")
    bench.add_argument(
        "dir", type=Path, nargs="?", help="a built dataset; made-up 640 x 480 photographs without"
    )
    bench.add_argument("--samples", type=int, default=200, help="records that are measured")
    bench.add_argument("--threads", type=int, default=2, help="threads of the loader")
    bench.add_argument("--size", type=int, default=336, help="side of the square picture")
    bench.add_argument("--seq-len", type=int, default=2048, help="positions of a row")
    bench.add_argument("--jpeg", choices=("pillow", "simplejpeg"), default="pillow")
    bench.add_argument("--scaled", action="store_true", help="decode large JPEGs at a lower size")
    bench.add_argument("--tokenizer", help="tokenizer folder; the bundled one by default")
    bench.add_argument(
        "--index-entries", type=int, default=0, help="also open a made-up index of so many records"
    )
    mixture = commands.add_parser("mixture", help="what a mixture makes of built datasets")
    mixture.add_argument("mixture", type=Path, help="a file such as those of configs/mixtures")
    mixture.add_argument("--built", type=Path, nargs="+", required=True, metavar="DIR")
    mixture.add_argument("--rows", type=int, default=16384, help="rows that are counted")
    mixture.add_argument("--seed", type=int, default=0)
    mixture.add_argument("--out", type=Path, help="JSON file to write: counts and permutations")
    pack = commands.add_parser("pack-plan", help="measure records for packing, beside the shards")
    pack.add_argument("dir", type=Path, help="a built dataset")
    pack.add_argument("--config", required=True, help="the recipe that will train on it")
    pack.add_argument("--workers", type=int, default=2, help="processes")
    pack.add_argument("--windows", type=int, default=16, help="windows that are packed to report")
    pack.add_argument("overrides", nargs="*", help="dotted.field=value")
    tasks = commands.add_parser("tasks", help="list the task types and where they come from")
    tasks.add_argument("--built", type=Path, help="a built dataset, to count its dialogues")


def run(args: argparse.Namespace) -> int:
    """Dispatches to the sub-command."""
    commands = {
        "shapes": _shapes,
        "build": _build,
        "recipes": _recipes,
        "doctor": _doctor,
        "inspect": _inspect,
        "tasks": _tasks,
        "export-tfds": _export_tfds,
        "bench": _bench,
        "mixture": _mixture,
        "pack-plan": _pack_plan,
    }
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
    from data_pipelines.build import build
    from data_pipelines.recipes import load_recipe
    from refvlm_jax.cli.data_html import write_build_page

    against = tuple(str(folder.resolve()) for folder in args.against)
    recipe = load_recipe(args.recipe, args.root, args.split, against=against)
    build(recipe, args.out, limit=args.limit, workers=args.workers)
    report = json.loads((args.out / "build_report.json").read_text(encoding="utf-8"))
    print(write_build_page(args.out, report))
    return 0


def _recipes(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from data_pipelines.recipes import bundled

    table = Table("recipe", "what it is")
    for name, about in bundled().items():
        table.add_row(name, about)
    Console().print(table)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from data_pipelines.doctor import examine
    from data_pipelines.tokenizer import load_tokenizer

    table, bad = Table("check", "looked at", "result", title=str(args.dir)), 0
    for check in examine(args.dir, load_tokenizer(args.tokenizer), sample=args.sample):
        bad += check.bad
        said = "\n".join([f"{check.bad} bad", *check.problems]) if check.bad else "good"
        table.add_row(check.name, str(check.looked_at), said)
    Console().print(table)
    return 1 if bad else 0


def _tasks(args: argparse.Namespace) -> int:
    from rich.console import Console

    from data_pipelines.task_table import as_table, task_rows

    console = Console()
    # A list that is read by another program keeps a line a task.
    console = console if console.is_terminal else Console(width=400)
    console.print(as_table(task_rows(args.built)))
    return 0


def _export_tfds(args: argparse.Namespace) -> int:
    from data_pipelines.tfds_export import export_tfds

    print(export_tfds(args.dirs, args.out, pictures=args.pictures))
    return 0


def _bench(args: argparse.Namespace) -> int:
    import tempfile

    from rich.console import Console

    from data_pipelines.bench_data import write_bench_data

    with tempfile.TemporaryDirectory(prefix="refvlm-bench-") as scratch:
        folder = args.dir or write_bench_data(Path(scratch) / "made", max(1, args.samples // 2))
        _bench_dataset(folder, args, Console())
        if args.index_entries:
            from data_pipelines.bench import measure_index

            opened, drawn = measure_index(Path(scratch) / "index", args.index_entries)
            print(
                f"index of {args.index_entries} records: open in {opened:.3f} s, "
                f"1000 rows drawn in {drawn:.3f} s"
            )
    return 0


def _bench_dataset(folder: Path, args: argparse.Namespace, console: "Console") -> None:
    from rich.table import Table

    from data_pipelines.bench import measure_loader, measure_stages, slowest
    from data_pipelines.encode import EncodeOptions
    from data_pipelines.images import Decoding
    from data_pipelines.pack import pack_plan
    from data_pipelines.pack_report import report_packing
    from data_pipelines.plan import build_plan
    from data_pipelines.shards import DialogStore, read_manifest
    from data_pipelines.tokenizer import load_tokenizer
    from refvlm_jax.batch import BatchSpec

    store, words = DialogStore(folder), load_tokenizer(args.tokenizer)
    spec = BatchSpec(
        seq_len=args.seq_len, images=4, image_size=args.size, image_tokens=(args.size // 14) ** 2,
        mask_size=args.size, kpt_refs=8, depth_refs=1, depth_size=args.size,
    )  # fmt: skip
    options = EncodeOptions(spec=spec)
    decoding = Decoding(jpeg=args.jpeg, scaled=args.scaled)
    source = (store, words, Path(read_manifest(folder)["image_root"]), options)
    stages = measure_stages(*source, samples=args.samples, decoding=decoding)
    plan = build_plan(store)
    loader = measure_loader(
        plan, *source, samples=args.samples, threads=args.threads, decoding=decoding
    )
    worst = slowest(stages)
    table = Table("stage", "samples/s", "images/s", "CPU ms a sample", title=str(folder))
    for stage in [*stages, loader]:
        images = f"{stage.images / stage.wall:.0f}" if stage.images and stage.wall else ""
        rate = f"{stage.samples / stage.wall:.0f}" if stage.wall else ""
        mark = "  <- slowest" if stage is worst else ""
        table.add_row(stage.name, rate, images, f"{stage.cpu_ms:.2f}{mark}")
    console.print(table)
    print(f"two processors in full: {2000 / loader.cpu_ms:.0f} samples/s")
    packed = pack_plan(plan, store, words, options)
    print(report_packing(packed, 4))


def _mixture(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from data_pipelines.index import load_index
    from data_pipelines.joined import JoinedStore
    from data_pipelines.mixture import (
        ingredients,
        load_mixture,
        mixture_plan,
        realised,
        save_manifest,
    )

    mixture, store = load_mixture(args.mixture), JoinedStore(args.built)
    found = ingredients(mixture, load_index(store, by_source=True))
    counts = realised(mixture_plan(store, mixture, seed=args.seed), args.rows)
    title = f"{mixture.name}: {mixture.about}"
    table = Table("source/task", "records", "kept", "wanted", "realised", title=title)
    for one in found:
        share = counts.get(one.label, 0) / sum(counts.values())
        table.add_row(
            one.label, str(one.records), str(one.kept), f"{one.share:.4f}", f"{share:.4f}"
        )
    Console(width=None).print(table)
    if args.out:
        save_manifest(args.out, mixture, found)
        print(args.out)
    return 0


def _pack_plan(args: argparse.Namespace) -> int:
    import time

    from data_pipelines.pack import PackedPlan
    from data_pipelines.pack_report import report_packing
    from refvlm_jax.cli.data_setup import plan_of, store_of, tokenizer_of
    from refvlm_jax.config.resolve import load_config

    settings = [f"data.path={args.dir}", "data.pack=True", *args.overrides]
    config = load_config(args.config, settings)
    store, start = store_of(config.data), time.perf_counter()
    plan = plan_of(config, store, tokenizer_of(config), args.workers)
    assert isinstance(plan, PackedPlan)
    print(f"{len(store)} records measured in {time.perf_counter() - start:.1f} s")
    print(report_packing(plan, args.windows))
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from rich import print as show

    from data_pipelines.shards import DialogStore, read_manifest

    shard = args.shard.name if args.shard.suffix == ".array_record" else None
    folder = args.shard.parent if shard else args.shard
    manifest, store = read_manifest(folder), DialogStore(folder)
    records = store.range_of(shard) if shard else range(len(store))
    chosen = records[args.start : args.start + args.limit]
    if args.html:
        from data_pipelines.tokenizer import load_tokenizer
        from refvlm_jax.cli.data_html import write_record_page

        dialogs = [store[index] for index in chosen]
        root = Path(manifest["image_root"])
        title = f"{args.shard.name}: records {args.start} to {args.start + len(chosen)}"
        write_record_page(args.html, title, dialogs, root, load_tokenizer(args.tokenizer))
        print(args.html)
        return 0
    show(manifest["counts"])
    for index in chosen:
        show(store[index])
    return 0
