"""A small run of the fuzzer over rows and shards, and that it can fail."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import fuzz_data
from fuzz_data import Case, attempt, convert, fuzz, read_damaged, sound_records, unsound

from data_pipelines.records import Dialog, decode


@pytest.fixture(scope="module")
def records() -> list[bytes]:
    return sound_records()


def test_damaged_rows_end_well() -> None:
    counts, failed = fuzz("rows", 400, 1, convert, lambda line: None)
    assert not failed, failed
    assert counts["kept"] > 100 and sum(n for o, n in counts.items() if "dropped" in o) > 100


def test_damaged_shards_end_well(records: list[bytes]) -> None:
    counts, failed = fuzz(
        "shards", 40, 1, lambda case, at: read_damaged(case, at, records), lambda line: None
    )
    assert not failed, failed
    assert counts["shard error"] > 20 and counts["record as written"] > 50


def test_failures_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(case: Case, folder: Path) -> list[str]:
        if case.number == 3:
            raise KeyError("x")
        if case.number == 5:
            import os

            os._exit(9)
        return ["kept"]

    monkeypatch.setattr(fuzz_data, "BATCH", 5)
    _, failed = fuzz("rows", 8, 0, breaks, lambda line: None)
    assert set(failed) == {"CRASH: KeyError: 'x'", "CRASH: the process died with 9"}
    assert "number=3" in failed["CRASH: KeyError: 'x'"]

    def hangs(case: Case, folder: Path) -> list[str]:
        while True:
            pass

    monkeypatch.setattr(fuzz_data, "SECONDS", 0.05)
    assert attempt(Case("rows", 0, 0), hangs, tmp_path)[0].startswith("HANG")


def test_an_unsound_record_is_told_apart(records: list[bytes]) -> None:
    def spoilt(**changes: object) -> str | None:
        dialog: Dialog = next(d for d in map(decode, records) if d.regions and d.regions[0].box)
        for name, value in changes.items():
            setattr(dialog.regions[0], name, value)
        return unsound(dialog)

    assert spoilt() is None
    assert spoilt(box=(0.0, 0.0, 1e4, 5.0)) and spoilt(point=(float("nan"), 0.0))
