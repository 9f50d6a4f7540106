"""From native annotation files to validated shards, in one call.

Entries of a recipe are converted in parallel into `.build/` under the output folder, where finished
shards survive a kill. Once all are there they get their final names, then the manifest is written.
"""

import json
import multiprocessing
import os
import queue
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from data_pipelines.build_report import BuildReport, report_of
from data_pipelines.entries import HASHES, Job, Part, convert_entry, hashes_of, parts_of, write_json
from data_pipelines.families import FAMILIES
from data_pipelines.manifest import MANIFEST, ShardInfo, read_manifest, write_manifest
from data_pipelines.pictures import Pictures, held_out, save_pictures
from data_pipelines.recipes import BuildRecipe, SourceEntry, load_recipe
from data_pipelines.settle import settle
from data_pipelines.sources.base import SourceError

__all__ = [
    "FAMILIES",
    "BuildRecipe",
    "BuildReport",
    "SourceEntry",
    "build",
    "shapes_all_recipe",
    "shapes_world_recipe",
]
_STATE = ".build"


def shapes_world_recipe(world: Path, split: str) -> BuildRecipe:
    """The files of a rendered shapes world."""
    return load_recipe("shapes", world, split)


def shapes_all_recipe(world: Path, split: str) -> BuildRecipe:
    """A rendered shapes world in every format it is written in, and so with every task type."""
    return load_recipe("shapes_all", world, split)


def build(
    recipe: BuildRecipe,
    out: Path,
    *,
    limit: int | None = None,
    workers: int = 1,
    progress: bool = True,
    records_per_shard: int = 20000,
) -> BuildReport:
    """Converts, validates and writes every entry of a recipe; equal finished work is kept.

    The result does not depend on `workers`, nor on whether a build was killed and started again.

    Args:
      limit: dialogues a source, for a first look.
      workers: processes that convert entries; 1 converts in this one.

    Raises:
      SourceError: a native file is missing or of another kind, or nothing survived.
    """
    out, key = Path(out), f"{recipe.hash}-{limit}"
    if (out / MANIFEST).is_file():
        manifest = read_manifest(out)
        if manifest.get("recipe") == key:
            print(f"{out}: built already")
            return BuildReport(counts=manifest["counts"], dropped=manifest["dropped"])
    for entry in recipe.entries:
        if entry.family not in FAMILIES:
            raise SourceError(f"unknown source family {entry.family!r}; known: {sorted(FAMILIES)}")
    state = _open_state(out, recipe, f"{key}-{records_per_shard}")
    jobs = [
        Job(recipe, number, state / f"{number:03d}-{entry.family}", limit, records_per_shard)
        for number, entry in enumerate(recipe.entries)
    ]
    _run(jobs, workers, progress)
    report = _publish(out, key, jobs)
    shutil.rmtree(state)
    if progress:
        _show(out, report)
    return report


def _open_state(out: Path, recipe: BuildRecipe, key: str) -> Path:
    """The folder of unfinished work; work on another recipe or on changed files is thrown away."""
    state = out / _STATE
    files = [_stamp(Path(e.file)) for e in recipe.entries]
    wanted = {"recipe": key, "files": files, "hashes": list(HASHES)}
    try:
        known = json.loads((state / "recipe.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = None
    if known != wanted:
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir(parents=True)
        write_json(state / "recipe.json", wanted)
    return state


def _stamp(path: Path) -> list[int]:
    """Size and time of a native file; a folder's content is not looked through."""
    try:
        stat = path.stat()
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns]


def _bytes(job: Job) -> int:
    """Size of the native file of a job, a guess at how long it takes; 0 where there is none."""
    return sum(_stamp(Path(job.recipe.entries[job.number].file))[:1])


def _run(jobs: Sequence[Job], workers: int, progress: bool) -> None:
    against, root = held_out(jobs[0].recipe.against), Path(jobs[0].recipe.image_root)
    with _bars(jobs, progress) as tell:
        if workers <= 1 or len(jobs) == 1:
            pictures = Pictures(root)
            for job in jobs:
                convert_entry(job, pictures, against, tell(job.number))
        else:
            _run_in_processes(jobs, min(workers, len(jobs)), root, tell)


Tell = Callable[[int, int], None]


@contextmanager
def _bars(jobs: Sequence[Job], shown: bool) -> Iterator[Callable[[int], Tell]]:
    """One progress line an entry: what its converter yielded, and how much was kept."""
    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn())
    kept = TextColumn("{task.fields[kept]} kept")
    with Progress(*columns, kept, TimeElapsedColumn(), disable=not shown) as bars:
        families = [job.recipe.entries[job.number].family for job in jobs]
        rows = [bars.add_task(family, total=jobs[0].limit, kept=0) for family in families]
        kept_of: Counter[int] = Counter()

        def of(number: int) -> Tell:
            def tell(seen: int, kept: int) -> None:
                kept_of[number] += kept
                bars.update(rows[number], advance=seen, kept=kept_of[number])

            return tell

        yield of


@dataclass
class _Worker:
    """What a worker process keeps between entries."""

    pictures: Pictures
    against: frozenset[int]
    messages: Any


_WORKER: list[_Worker] = []


def _start_worker(root: Path, against: tuple[str, ...], messages: Any) -> None:
    _WORKER[:] = [_Worker(Pictures(root), held_out(against), messages)]


def _work(job: Job) -> None:
    (worker,) = _WORKER
    put = worker.messages.put
    convert_entry(
        job, worker.pictures, worker.against, lambda seen, kept: put((job.number, seen, kept))
    )


def _run_in_processes(
    jobs: Sequence[Job], workers: int, root: Path, tell: Callable[[int], Tell]
) -> None:
    # Fresh interpreters: forking one in which JAX or a progress bar runs threads may hang.
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    start = (root, jobs[0].recipe.against, messages)
    # The longest first, so that none is left over for one process at the end.
    longest_first = sorted(jobs, key=lambda job: -_bytes(job))
    with ProcessPoolExecutor(workers, context, _start_worker, start) as pool:
        futures = [pool.submit(_work, job) for job in longest_first]
        try:
            _follow(futures, messages, tell)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _follow(futures: Sequence[Future[None]], messages: Any, tell: Callable[[int], Tell]) -> None:
    """Shows progress until all are done; raises the first failure."""
    waiting: set[Future[None]] = set(futures)
    while waiting:
        done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
        while True:
            try:
                number, seen, kept = messages.get_nowait()
            except queue.Empty:
                break
            tell(number)(seen, kept)


def _publish(out: Path, key: str, jobs: Sequence[Job]) -> BuildReport:
    """Gives finished shards their names and writes the report, then the manifest."""
    recipe = jobs[0].recipe
    settle([job.folder for job in jobs])
    parts = [parts_of(job.folder) for job in jobs]
    stems = _stems([recipe.entries[job.number].family for job in jobs])
    report = report_of(recipe, [job.folder for job in jobs], parts, stems)
    if not report.counts:
        raise SourceError(f"{out}: no record survived; first problems: {report.lines[:3]}")
    (out / MANIFEST).unlink(missing_ok=True)
    stores = {
        stem: _named(out, stem, job.folder, own)
        for stem, job, own in zip(stems, jobs, parts, strict=True)
    }
    seen = [hashes_of(job.folder, own)["seen"] for job, own in zip(jobs, parts, strict=True)]
    save_pictures(out, np.concatenate(seen))
    write_json(out / "build_report.json", report.to_json())
    write_manifest(
        out,
        stores=stores,
        image_root=recipe.image_root,
        counts=report.counts,
        extra={"recipe": key, "dropped": report.dropped, "sources": report.sources},
    )
    _remove_others(out, {shard.name for shards in stores.values() for shard in shards})
    return report


def _stems(families: Sequence[str]) -> list[str]:
    """A name for the shards of each entry; a family's later entries are numbered."""
    seen: Counter[str] = Counter()
    stems = []
    for family in families:
        seen[family] += 1
        number = f"-{seen[family]}" if seen[family] > 1 else ""
        stems.append(f"dialog-{family}{number}")
    return stems


def _named(out: Path, stem: str, folder: Path, parts: Sequence[Part]) -> list[ShardInfo]:
    filled = [part.shard for part in parts if part.shard.records]
    named = []
    for number, shard in enumerate(filled):
        name = f"{stem}-{number:05d}-of-{len(filled):05d}.array_record"
        temporary = out / f".{name}.tmp"
        temporary.unlink(missing_ok=True)
        try:  # a second name costs nothing and leaves the work in place until the manifest is there
            os.link(folder / shard.name, temporary)
        except OSError:
            shutil.copyfile(folder / shard.name, temporary)
        os.replace(temporary, out / name)
        named.append(replace(shard, name=name))
    return named


def _remove_others(out: Path, names: set[str]) -> None:
    """Shards of an earlier build of the folder."""
    for path in out.glob("dialog-*-of-*.array_record"):
        if path.name not in names:
            path.unlink()


def _show(out: Path, report: BuildReport) -> None:
    table = Table("task", "dialogues", title=str(out))
    for task, number in sorted(report.counts.items()):
        table.add_row(task, str(number))
    for code, number in sorted(report.dropped.items()):
        table.add_row(f"dropped {code}", str(number))
    Console().print(table)
