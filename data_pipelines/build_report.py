"""What came out of a build, for people and for machines."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.entries import Part, hashes_of, read_entry
from data_pipelines.pictures import NO_PICTURE, load_pictures
from data_pipelines.recipes import BuildRecipe
from data_pipelines.settle import repeated

_LINES = 1000
_DRAWN = 3

CODES = {
    "V01": "unknown or missing field, or a uid that occurs twice",
    "V02": "picture missing, damaged, of one colour, or of another size",
    "V03": "no turn, or an empty answer",
    "V04": "a region that nothing refers to, or without a picture",
    "V05": "box empty, not finite, or outside the picture",
    "V06": "mask empty, damaged, or of another aspect",
    "V07": "mask vanishes at the training grid: text is learned, pixels are not",
    "V08": "keypoints malformed or outside the picture",
    "V09": "depth map missing, damaged, or out of range",
    "V10": "spans and targets disagree",
    "V11": "text of a span cannot be written",
    "V12": "no span of the unit that the turn asks for",
    "V13": "a prompt that cannot be shown",
    "V14": "text that would be read as structure",
    "V15": "more references, masks or prompts than a row holds",
    "V16": "longer than a row: split between turns, or dropped where one turn is",
    "V17": "template bank or slots missing",
    "V18": "empty expression or category",
    "V19": "a crowd region as target",
    "V20": "grounded phrase is not where the row says",
    "V21": "a prompt that is empty, or the target itself where it should be drawn",
    "V22": "to be turned by EXIF: read as stored, dropped where annotated as shown",
    "V23": "the same question and answer about the same picture",
    "V24": "picture is evaluated on in a task of this kind",
    "V25": "the rendered answer does not read back as written",
}
"""Validation codes and the rule each one stands for."""


@dataclass(kw_only=True)
class BuildReport:
    """What came out."""

    counts: dict[str, int]
    """Dialogues by task."""
    dropped: dict[str, int]
    """Records by validation code; V23 is flagged, never dropped."""
    flagged: dict[str, int] = field(default_factory=dict)
    """Records kept with a warning, by validation code."""
    sources: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    """Source -> task -> dialogues, turns, references by unit, prompts by kind."""
    units: dict[str, int] = field(default_factory=dict)
    """References by unit."""
    families: list[dict[str, Any]] = field(default_factory=list)
    """Entries of the recipe with their records, drops and duplicates."""
    pictures: int = 0
    """Distinct pictures by content."""
    copies: int = 0
    """Files whose picture another file holds too."""
    overlap: list[dict[str, Any]] = field(default_factory=list)
    """For each dataset built against: its pictures that are here too (in tasks of other kinds), and
    records that were dropped because of all of them."""
    samples: dict[str, list[int]] = field(default_factory=dict)
    """Task -> records to draw, numbered as `DialogStore` does."""
    lines: list[str] = field(default_factory=list)
    """Why records were dropped, the first ones."""

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)


def report_of(
    recipe: BuildRecipe,
    folders: Sequence[Path],
    parts: Sequence[Sequence[Part]],
    stems: Sequence[str],
) -> BuildReport:
    """The report on finished entries.

    Args:
      folders: where their shards are.
      parts: their shards.
      stems: their names in the dataset.
    """
    report = BuildReport(counts={}, dropped={})
    dropped: Counter[str] = Counter()
    flagged: Counter[str] = Counter()
    hashes = [hashes_of(f, p) for f, p in zip(folders, parts, strict=True)]
    twice = repeated(np.concatenate([own["content"] for own in hashes]))
    start = 0
    for number, (folder, own) in enumerate(zip(folders, parts, strict=True)):
        entry = read_entry(folder)
        lost = sum((Counter(part.dropped) for part in own), Counter(entry.dropped))
        dropped += lost
        flagged += sum((Counter(part.flagged) for part in own), Counter())
        report.lines += [*entry.lines, *(line for part in own for line in part.lines)]
        kept = sum(part.shard.records for part in own)
        same = int(twice[start : start + kept].sum())
        start += kept
        flagged["V23"] += same
        row = recipe.entries[number]
        report.families.append(
            {
                "family": row.family, "file": Path(row.file).name, "store": stems[number],
                "records": kept, "duplicates": same, "dropped": dict(sorted(lost.items())),
            }
        )  # fmt: skip
        for part in own:
            _count(report, part.table)
    report.lines = report.lines[:_LINES]
    report.counts = dict(sorted(report.counts.items()))
    report.dropped = dict(sorted(dropped.items()))
    report.flagged = {code: n for code, n in sorted(flagged.items()) if n}
    seen = np.unique(np.concatenate([own["seen"] for own in hashes]))
    _compare(report, recipe, seen)
    file = np.unique(np.concatenate([own["file"] for own in hashes]))
    report.copies = max(0, int(np.count_nonzero(file != NO_PICTURE)) - report.pictures)
    report.samples = _samples(parts, stems)
    return report


def _count(report: BuildReport, table: Sequence[tuple[str, str, str, int]]) -> None:
    for source, task, what, number in table:
        cell = report.sources.setdefault(source, {}).setdefault(task, {})
        cell[what] = cell.get(what, 0) + number
        if what == "dialogs":
            report.counts[task] = report.counts.get(task, 0) + number
        elif what != "turns" and not what.endswith(" prompt"):
            report.units[what] = report.units.get(what, 0) + number


def _compare(report: BuildReport, recipe: BuildRecipe, seen: np.ndarray) -> None:
    mine = np.unique(seen[seen != NO_PICTURE] >> np.uint64(3))
    report.pictures = len(mine)
    for folder in recipe.against:
        theirs = np.unique(load_pictures(Path(folder)) >> np.uint64(3))
        both = len(np.intersect1d(mine, theirs, assume_unique=True))
        report.overlap.append(
            {"dataset": Path(folder).name, "pictures": len(theirs), "kept_here_too": both}
        )


def _samples(parts: Sequence[Sequence[Part]], stems: Sequence[str]) -> dict[str, list[int]]:
    """The first records of every task, in the order in which a `DialogStore` numbers them."""
    found: dict[str, list[int]] = {}
    start = 0
    for _, own in sorted(zip(stems, parts, strict=True), key=lambda pair: pair[0]):
        for part in own:
            for task, record in part.samples:
                found.setdefault(task, []).append(start + record)
            start += part.shard.records
    return {task: records[:_DRAWN] for task, records in sorted(found.items())}


def rows_of(sources: Mapping[str, Mapping[str, Mapping[str, int]]]) -> list[dict[str, Any]]:
    """The source table as flat rows."""
    return [
        {"source": source, "task": task, **cell}
        for source, tasks in sorted(sources.items())
        for task, cell in sorted(tasks.items())
    ]
