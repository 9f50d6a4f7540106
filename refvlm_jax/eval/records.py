"""Prediction and truth records as JSON lines: strict reading, atomic writing."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from refvlm_jax.eval import fields as f
from refvlm_jax.eval.record_types import (
    Box,
    DepthMap,
    Instance,
    Prediction,
    Rle,
    Triplet,
    Truth,
    instances,
)
from refvlm_jax.rle import runs
from refvlm_jax.trp.format import AnswerStyle

__all__ = [
    "Box",
    "DepthMap",
    "Instance",
    "Prediction",
    "Rle",
    "Triplet",
    "Truth",
    "parse_prediction",
    "parse_truth",
    "read_predictions",
    "read_truths",
    "write_records",
    "write_text",
]

Record = TypeVar("Record", Prediction, Truth)
AnyRecord = TypeVar("AnyRecord", bound=Prediction | Truth)


def write_records(path: Path, records: Iterable[Prediction | Truth]) -> None:
    """Writes records as JSON lines, atomically; the folder must exist.

    Files of depth maps are named relative to it, so that records and maps can move together.

    Raises:
      ValueError: a record that could not be read back, for instance with a box that is not finite.
    """
    folder = Path(path).absolute().parent
    lines = [_line(_renamed(r, lambda p: os.path.relpath(p, folder))) for r in records]
    write_text(path, "".join(lines))


def write_text(path: Path, content: str) -> None:
    """Writes a text file so that a reader sees the old content or the new one, never a part."""
    scratch = path.with_name(f"{path.name}.tmp")
    with scratch.open("w", encoding="utf-8", newline="\n") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


def read_predictions(*paths: Path) -> dict[str, Prediction]:
    """Predictions of one or several shards by uid; identical duplicates count once.

    Raises:
      ValueError: a line that is no prediction, or two different predictions for a uid.
    """
    return _read_all(paths, parse_prediction)


def read_truths(*paths: Path) -> list[Truth]:
    """Ground truth of one or several files in file order; errors as `read_predictions`."""
    return list(_read_all(paths, parse_truth).values())


def parse_prediction(value: Any) -> Prediction:
    """A prediction from parsed JSON; raises ValueError naming the field."""
    fields = f.Fields(value)
    record = Prediction(
        **_common(fields),
        plain=fields.take("plain", f.text),
        finish=fields.take("finish", f.one_of("eos", "length")),
        n_tokens=fields.take("n_tokens", f.whole),
        plan=fields.take("plan", f.list_of(_plan_line), []),
        prompt=fields.take("prompt", f.text, ""),
        turn=fields.take("turn", f.whole, 0),
        template_id=fields.take("template_id", f.whole, 0),
        model=fields.take("model", f.text, ""),
        gen=fields.take("gen", f.map_of(f.anything), {}),
        seed=fields.take("seed", f.whole, 0),
    )
    fields.done()
    return record


def parse_truth(value: Any) -> Truth:
    """A truth from parsed JSON; raises ValueError naming the field."""
    fields = f.Fields(value)
    record = Truth(
        **_common(fields),
        question=fields.take("question", f.text),
        answer=fields.take("answer", f.text),
        references=fields.take("references", f.list_of(f.text), []),
        ignore=fields.take("ignore", f.list_of(_instance), []),
        image_id=fields.take("image_id", f.whole_or_text, 0),
        style=cast(AnswerStyle, fields.take("style", f.one_of(*get_args(AnswerStyle)), "plan")),
    )
    fields.done()
    return record


def _common(fields: f.Fields) -> dict[str, Any]:
    return {
        "uid": fields.take("uid", f.text),
        "task_id": fields.take("task_id", f.text),
        "image": fields.take("image", f.text),
        "width": fields.take("width", f.positive),
        "height": fields.take("height", f.positive),
        "raw": fields.take("raw", f.text),
        "triplets": fields.take("triplets", f.list_of(_triplet), []),
    }


def _triplet(value: Any, where: str) -> Triplet:
    fields = f.Fields(value, where)
    start, end = fields.take("char_span", f.list_of(f.whole, 2))
    triplet = Triplet(
        phrase=fields.take("phrase", f.text),
        unit=fields.take("unit", f.text),
        char_span=(start, end),
        instances=fields.take("instances", f.list_of(_instance)),
    )
    fields.done()
    if start > end:
        raise ValueError(f"{where}.char_span [{start}, {end}] ends before it starts")
    return triplet


def _instance(value: Any, where: str) -> Instance:
    fields = f.Fields(value, where)
    instance = Instance(
        box=fields.take("box", f.optional(_box)),
        rle=fields.take("rle", f.optional(_rle)),
        keypoints=fields.take("keypoints", f.optional(f.list_of(f.list_of(f.number, 3))), None),
        depth=fields.take("depth", f.optional(_depth), None),
        score=fields.take("score", f.number),
        score_parts=fields.take("score_parts", f.map_of(f.number), {}),
    )
    fields.done()
    return instance


def _box(value: Any, where: str) -> Box:
    x1, y1, x2, y2 = f.list_of(f.number, 4)(value, where)
    return x1, y1, x2, y2


def _rle(value: Any, where: str) -> Rle:
    fields = f.Fields(value, where)
    height, width = fields.take("size", f.list_of(f.positive, 2))
    counts = fields.take("counts", f.text)
    fields.done()
    try:
        runs(counts.encode("ascii"), height, width)
    except ValueError as error:  # a non-ASCII string too
        raise ValueError(f"{where}: {error}") from error
    return {"size": [height, width], "counts": counts}


def _depth(value: Any, where: str) -> DepthMap:
    fields = f.Fields(value, where)
    depth = DepthMap(
        path=fields.take("path", f.text, ""),
        png=fields.take("png", f.text, ""),
        scale=fields.take("scale", f.number),
        offset=fields.take("offset", f.number, 0.0),
        invalid=fields.take("invalid", f.whole, 0),
        kind=fields.take("kind", f.one_of("metric", "relative"), "metric"),
    )
    fields.done()
    if bool(depth.path) == bool(depth.png):
        raise ValueError(f"{where} needs either a path or a png, not both")
    if depth.scale <= 0:
        raise ValueError(f"{where}.scale is {depth.scale}; expected a positive number")
    return depth


def _plan_line(value: Any, where: str) -> dict[str, Any]:
    fields = f.Fields(value, where)
    line = {
        "name": fields.take("name", f.text),
        "unit": fields.take("unit", f.text),
        "num": fields.take("num", f.whole),
    }
    fields.done()
    return line


def _renamed(record: AnyRecord, change: Callable[[str], str]) -> AnyRecord:
    """The record with `change` applied to the path of every depth map."""
    if not any(i.depth is not None and i.depth.path for i in instances(record)):
        return record

    def moved(instance: Instance) -> Instance:
        depth = instance.depth
        if depth is None or not depth.path:
            return instance
        return replace(instance, depth=replace(depth, path=change(depth.path)))

    triplets = [replace(t, instances=list(map(moved, t.instances))) for t in record.triplets]
    return replace(record, triplets=triplets)


def _line(record: Prediction | Truth) -> str:
    try:
        content = json.loads(json.dumps(dataclasses.asdict(record)))  # tuples become lists
        (parse_prediction if isinstance(record, Prediction) else parse_truth)(content)
    except (TypeError, ValueError) as error:  # json.dumps refuses foreign types by TypeError
        raise ValueError(f"record {record.uid!r} cannot be written: {error}") from error
    return json.dumps(content) + "\n"


def _read_all(paths: Iterable[Path], parse: Callable[[Any], Record]) -> dict[str, Record]:
    found: dict[str, Record] = {}
    origin: dict[str, str] = {}
    for path in paths:
        for where, record in _read_file(path, parse):
            known = found.setdefault(record.uid, record)
            first = origin.setdefault(record.uid, where)
            if known != record:
                raise ValueError(
                    f"{where}: uid {record.uid!r} differs from the record at {first}; "
                    "remove one of them"
                )
    return found


def _from(path: Path) -> Callable[[str], str]:
    folder = Path(path).absolute().parent
    return lambda name: os.path.normpath(folder / name)


def _read_file(path: Path, parse: Callable[[Any], Record]) -> Iterator[tuple[str, Record]]:
    # Bytes, so that neither a foreign encoding nor an unusual line separator hides a line number.
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            yield where, _renamed(parse(json.loads(line)), _from(path))
        except (ValueError, RecursionError) as error:  # bad JSON and bad UTF-8 are ValueErrors
            raise ValueError(f"{where}: {error}") from error
