"""Damages native annotation rows and shards at random and counts what becomes of them.

    python benchmarks/fuzz_data.py --records 100000 --shards 10000

Every damaged row must end as a sound record, under a validation code, or with its file refused, and a
damaged shard as its own records or an error that names it. Anything else is a failure: another
exception, more than ten seconds of work, a process that dies, or a record that is kept although it is
not sound. Failures are printed with the case that repeats them, and the exit status is 1.
"""

import argparse
import copy
import json
import logging
import multiprocessing
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "unit"))
from source_rows import EVERYTHING

from data_pipelines.manifest import ShardError, ShardInfo, write_manifest
from data_pipelines.records import Dialog, decode, encode
from data_pipelines.shards import WRITER_OPTIONS, DialogStore
from data_pipelines.sources.base import Drops, SourceError
from data_pipelines.validate import repair, validate

SECONDS = 10  # after which a case is said to hang
BATCH = 2000  # cases a process
JUNK = (
    None, "", " ", "x{y}", "<REF>", "</Phrase>", "a\nb", "\x00", "\ud83d", "[VPT]", " Unit: ", "0" * 300,
    -1, 0, 1, 65536, 10**12, 10**400, 1.5, -0.5, float("nan"), float("inf"), True, False,
    [], [None], [[]], [[], [1]], [1, 2], {}, {"size": 3}, {"counts": "4", "size": [50, 60]},
)  # fmt: skip


FAILED = ("CRASH", "HANG", "WRONG")


class Hang(Exception):
    """A case took longer than SECONDS."""


@dataclass(frozen=True)
class Case:
    """One damaged input: its number among the cases of its kind, and the seed of all."""

    kind: str
    number: int
    seed: int

    def rng(self) -> random.Random:
        return random.Random(f"{self.seed}/{self.kind}/{self.number}")


# --- rows -----------------------------------------------------------------------------------------


def places(node: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths of all values below the top level."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def damage(content: Any, rng: random.Random) -> Any:
    """The content with one to three values replaced, removed, repeated, moved or bent."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        # The lists a file consists of are a matter of the whole file.
        found = [p for p in places(content) if not (isinstance(content, dict) and len(p) == 1)]
        if not found:
            return content
        path = rng.choice(found)
        node = content
        for key in path[:-1]:
            node = node[key]
        _bend(node, path[-1], rng)
    return content


def _bend(node: Any, key: Any, rng: random.Random) -> None:
    value, kind = node[key], rng.randrange(6)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, list):
        node.insert(key, copy.deepcopy(value))
    elif kind == 2:
        other = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node[key], node[other] = node[other], node[key]
    elif kind == 3 and isinstance(value, int | float) and abs(value) < 2**60:
        node[key] = rng.choice((-value, value * 1000, value + 0.5, value / 7, str(value), [value]))
    elif kind == 4 and isinstance(value, str) and value:
        at = rng.randrange(len(value))
        node[key] = rng.choice(
            (value[:at], value[:at] + str(rng.choice(JUNK)) + value[at:], value * 50, value[::-1])
        )
    else:
        node[key] = copy.deepcopy(rng.choice(JUNK))


def convert(case: Case, folder: Path) -> list[str]:
    """What became of a damaged row."""
    names = sorted(EVERYTHING)
    content, lines, converter = EVERYTHING[names[case.number % len(names)]]
    broken = damage(json.loads(json.dumps(content)), case.rng())
    path, drops = folder / "native.json", Drops()
    path.write_text("\n".join(map(json.dumps, broken)) if lines else json.dumps(broken))
    try:
        found = list(converter(path, "train", "", drops))
    except SourceError:
        return ["file refused"]
    outcomes = [f"dropped {code}" for code, n in drops.counts.items() for _ in range(n)]
    if len(drops.lines) != drops.counts.total():
        outcomes.append("WRONG: a drop without a line")
    for dialog in found:
        outcomes.append(judge(dialog))
    return outcomes or ["nothing to convert"]


def judge(dialog: Dialog) -> str:
    """How a record that a converter yields would end in a build."""
    fixed = repair(dialog)
    errors = [finding for finding in validate(fixed) if finding.level == "E"]
    if errors:
        return f"dropped {errors[0].code}"
    wrong = unsound(fixed)
    if wrong is None and encode(decode(encode(fixed))) != encode(fixed):
        wrong = "it does not read back as it was written"
    return f"WRONG: {wrong}" if wrong else "kept"


def unsound(dialog: Dialog) -> str | None:
    """What is wrong with a record that passed validation, judged without the code of validation."""
    if not (dialog.uid and dialog.turns):
        return "no uid or no turn"
    for turn in dialog.turns:
        if any(not isinstance(t, str) for t in (turn.answer, turn.literal, *turn.slots.values())):
            return "words that are no text"
        if not (turn.literal.strip() or turn.bank):
            return "a turn without a question"
        used = [k for s in turn.spans for k in s.targets] + [p.region for p in turn.prompts]
        if any(not 0 <= k < len(dialog.regions) for k in used):
            return "a region that does not exist"
        if any(not turn.answer[s.start : s.end].strip() for s in turn.spans):
            return "a span of nothing"
    if dialog.image is None:
        return "regions without a picture" if dialog.regions else None
    width, height = dialog.image.width, dialog.image.height
    for region in dialog.regions:
        numbers = [*(region.box or ()), *(region.point or ())]
        numbers += [v for joint in region.keypoints or () for v in joint]
        if not all(isinstance(v, int | float) and isfinite(v) for v in numbers):
            return "a coordinate that is no number"
        if region.box and not (
            0 <= region.box[0] < region.box[2] <= width
            and 0 <= region.box[1] < region.box[3] <= height
        ):
            return "a box outside the picture"
        if (
            region.mask
            and abs(region.mask.h * width - region.mask.w * height) > 0.02 * region.mask.w * height
        ):
            return "a mask of another aspect"
    return None


# --- shards ---------------------------------------------------------------------------------------


def sound_records() -> list[bytes]:
    """Records of undamaged rows of all families."""
    kept = []
    with tempfile.TemporaryDirectory() as folder:
        for name in sorted(EVERYTHING):
            content, lines, converter = EVERYTHING[name]
            path = Path(folder) / "native.json"
            path.write_text("\n".join(map(json.dumps, content)) if lines else json.dumps(content))
            kept += [encode(repair(d)) for d in converter(path, "train", "", Drops())]
    return kept


def read_damaged(case: Case, folder: Path, records: Sequence[bytes]) -> list[str]:
    """What became of a shard with damaged bytes, or of one damaged record in a sound shard."""
    rng = case.rng()
    chosen = rng.sample(range(len(records)), 6)
    content = [records[k] for k in chosen]
    inside = case.number % 2 == 0
    if inside:
        content[0] = scramble(content[0], rng)
    path = folder / "dialog-00000-of-00001.array_record"
    writer = ArrayRecordWriter(str(path), WRITER_OPTIONS)
    for record in content:
        writer.write(record)
    writer.close()
    whole = path.read_bytes()
    if not inside:
        path.write_bytes(scramble(whole, rng))
    info = ShardInfo(
        name=path.name,
        records=len(content),
        bytes=path.stat().st_size,
        sha256=sha256(whole).hexdigest(),
    )
    write_manifest(folder, stores={"dialog": [info]}, image_root=str(folder), counts={}, extra={})
    store, outcomes = DialogStore(folder), []
    for k in range(len(content)):
        try:
            dialog = store[k]
        except ShardError as error:
            outcomes.append("shard error" if path.name in str(error) else f"WRONG: {error}")
            continue
        if encode(dialog) == records[chosen[k]]:
            outcomes.append("record as written")
        elif inside and k == 0:
            outcomes.append(judge(dialog))
        else:
            outcomes.append("WRONG: another record than was written")
    return outcomes


def scramble(data: bytes, rng: random.Random) -> bytes:
    """Bytes with bits turned, or a part cut off, cleared, doubled or put in."""
    changed, at = bytearray(data), rng.randrange(len(data))
    kind, length = rng.randrange(5), rng.choice((1, 4, 16, 64))
    if kind == 0:
        for _ in range(rng.randint(1, 8)):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del changed[at:]
    elif kind == 2:
        changed[at : at + length] = bytes(len(changed[at : at + length]))
    elif kind == 3:
        changed[at:at] = changed[at : at + length]
    else:
        changed[at:at] = rng.randbytes(length)
    return bytes(changed) or b"\x00"


# --- running --------------------------------------------------------------------------------------

Look = Callable[[Case, Path], list[str]]


def attempt(case: Case, look: Look, folder: Path) -> list[str]:
    """The outcomes of one case; a crash or a hang is one of them."""

    def late(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.setitimer(signal.ITIMER_REAL, SECONDS * 20)  # a busy machine is no hang
    signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        return look(case, folder)
    except Hang:
        return [f"HANG: more than {SECONDS} s"]
    except Exception as error:  # whatever it is, it is what is looked for
        return [f"CRASH: {type(error).__name__}: {str(error)[:100]}"]
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _batch(kind: str, numbers: range, seed: int, look: Look, at: Any, results: Any) -> None:
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            at.value = number
            case = Case(kind, number, seed)
            found = attempt(case, look, Path(folder))
            for outcome in found:
                counts[outcome] += 1
                if outcome.startswith(FAILED):
                    examples.setdefault(outcome, str(case))
            shutil.rmtree(Path(folder) / "rows", ignore_errors=True)
    results.put((counts, examples))


def fuzz(
    kind: str, cases: int, seed: int, look: Look, tell: Callable[[str], None]
) -> tuple[Counter[str], dict[str, str]]:
    """Outcomes of many cases, and one case of each failure; the processes may die, the run goes on."""
    context = multiprocessing.get_context("fork")
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    start, begin = 0, time.monotonic()
    while start < cases:
        numbers = range(start, min(start + BATCH, cases))
        at, results = context.Value("q", start), context.SimpleQueue()
        process = context.Process(target=_batch, args=(kind, numbers, seed, look, at, results))
        process.start()
        while process.is_alive() and results.empty():
            time.sleep(0.05)
        if not results.empty():
            found, cases_of = results.get()
            counts.update(found)
            examples = cases_of | examples
        process.join()
        start = numbers.stop
        if process.exitcode:
            died = f"CRASH: the process died with {process.exitcode}"
            counts[died] += 1
            examples.setdefault(died, str(Case(kind, at.value, seed)))
            start = at.value + 1  # outcomes of the batch up to there are lost
        known = dict(sorted(counts.items()))
        tell(f"{kind} {start} of {cases}, {time.monotonic() - begin:.0f} s: {known}")
    return counts, examples


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs both kinds, prints outcomes; 1 when there is a failure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=1000, help="damaged native files")
    parser.add_argument("--shards", type=int, default=100, help="damaged shards")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the counts")
    args = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    records = sound_records()
    looks: dict[str, tuple[int, Look]] = {
        "rows": (args.records, convert),
        "shards": (args.shards, lambda case, folder: read_damaged(case, folder, records)),
    }
    console, bad, content = Console(), 0, {}
    for kind, (cases, look) in looks.items():
        counts, examples = fuzz(kind, cases, args.seed, look, lambda line: print(line, flush=True))
        bad += len(examples)
        table = Table(
            "outcome", "number", title=f"{cases} damaged {kind}, {len(EVERYTHING)} families"
        )
        for outcome, number in sorted(counts.items()):
            table.add_row(outcome, str(number))
        console.print(table)
        content[kind] = {
            "cases": cases,
            "seed": args.seed,
            "outcomes": dict(sorted(counts.items())),
        }
        for outcome, case in examples.items():
            print(f"{outcome}: for example {case}")
    if args.json:
        args.json.write_text(json.dumps(content, indent=1))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
