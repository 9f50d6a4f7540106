"""Metric files of a run: `metrics.jsonl`, and TensorBoard events beside it."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO


class MetricWriter:
    """Appends one JSON line a record and, if asked to, mirrors the numbers to TensorBoard.

    On resume, records after the restored step are dropped: the steps will be run again, and a file
    whose last line was cut by a kill would not parse.
    """

    def __init__(self, folder: Path, resume_step: int, tensorboard: bool = True) -> None:
        """Opens the files of `folder`, keeping records up to `resume_step`."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        _truncate(path, resume_step)
        self._file: TextIO = path.open("a", encoding="utf-8")
        self._board = _board(folder / "tensorboard", resume_step + 1) if tensorboard else None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Records the metrics after `step` updates; flushed, so that a kill loses nothing.

        `time` is the Unix time of the record, from which a restart knows how long it was away.
        """
        self._file.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes both files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _board(folder: Path, first_step: int) -> Any:
    # Imported here because it imports torch where that is installed, which takes seconds: only
    # the process that writes should pay.
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder), purge_step=first_step)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The records of a metrics file; a last line that a kill cut short is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def last_record(folder: Path) -> dict[str, float] | None:
    """The last whole record of the run in `folder`, None if there is none."""
    path = folder / "metrics.jsonl"
    records = read_metrics(path) if path.exists() else []
    return records[-1] if records else None


def _truncate(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [record for record in read_metrics(path) if record["step"] <= step]
    scratch = path.with_suffix(".tmp")
    scratch.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
    os.replace(scratch, path)
