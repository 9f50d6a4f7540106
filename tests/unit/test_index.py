"""The mapped index: what opening costs, and what happens to a damaged one."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_dialogs import write_dataset

from data_pipelines.index import Index, load_index
from data_pipelines.plan import build_plan
from data_pipelines.shards import DialogStore, ShardError
from data_pipelines.synthetic_index import write_synthetic_index

MEASURE = """
import json, re, sys
from pathlib import Path
from data_pipelines.index import Index
from data_pipelines.plan import plan_index
index = Index.open(Path(sys.argv[1]))
plans = [plan_index(index, weights=w, merge=4, seed=1) for w in ({}, {"T03": 1.0, "T17": 2.0})]
rows = [plan.rows(k * 10**9) for plan in plans for k in range(200)]
# Mapped files count as resident, too, but the system takes those pages back when it needs them.
own = re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
megabytes = int(own[1]) / 1024
print(json.dumps({"megabytes": megabytes, "rows": rows, "n": len(index.task)}))
"""


def measure(folder: Path) -> dict:
    command = [sys.executable, "-c", MEASURE, str(folder)]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads Linux's account of memory"
)
@pytest.mark.parametrize("records", [3_000_000, pytest.param(100_000_000, marks=pytest.mark.slow)])
def test_a_large_index_is_not_loaded(tmp_path: Path, records: int) -> None:
    write_synthetic_index(tmp_path / "index", records)
    found = measure(tmp_path / "index")
    assert found["n"] == records and found["megabytes"] < 200, found["megabytes"]
    everything, weighted = found["rows"][:200], found["rows"][200:]
    assert all(len({k // 8 for k in row}) == 1 and len(row) == 4 for row in everything)
    assert len({row[0] for row in everything}) > 190
    assert {k % 25 for row in weighted for k in row} == {2, 16}


def test_a_synthetic_index_is_a_sound_one(tmp_path: Path) -> None:
    write_synthetic_index(tmp_path / "index", 1003, tasks=7, picture=5)
    index = Index.open(tmp_path / "index")
    assert sorted(index.by_task.tolist()) == list(range(1003)) and index.first[-1] == 1003
    for code, task in enumerate(index.tasks):
        assert (index.task[index.pool(task)] == code).all()
    for picture in range(len(index.first) - 1):
        members = index.members[index.first[picture] : index.first[picture + 1]]
        assert (index.picture[members] == picture).all()


def test_an_index_is_kept_beside_the_shards(tmp_path: Path) -> None:
    store = DialogStore(write_dataset(tmp_path))
    first = load_index(store)
    (folder,) = store.folder.glob("index-*")
    assert first.folder == folder and isinstance(first.task, np.memmap)
    rows = [build_plan(store, seed=2).rows(k) for k in range(30)]
    (folder / "members.npy").write_bytes(b"damaged")
    with pytest.raises(ShardError, match=r"no usable index .*delete the folder"):
        load_index(store)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    assert [build_plan(store, seed=2).rows(k) for k in range(30)] == rows
