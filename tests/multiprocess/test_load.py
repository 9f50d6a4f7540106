"""PyTorch weights on a mesh of two processes: each reads the bytes of its own shards and no others."""

import json
from pathlib import Path

import numpy as np
import pytest

from refvlm_jax.ckpt.convert.import_ import import_weights
from refvlm_jax.ckpt.manager import load_params
from refvlm_jax.testing.cluster import Processes, tail
from refvlm_jax.testing.torch_layout import tiny_config, write_released

pytestmark = pytest.mark.multiprocess
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = str(Path(__file__).with_name("load_job.py"))


def test_each_process_reads_its_own_bytes(tmp_path):
    source, out = tmp_path / "released", tmp_path / "out"
    write_released(source, tiny_config())
    out.mkdir()
    with Processes([PROGRAM, str(source), str(out)], 2, 2, out, path=ROOT) as processes:
        assert processes.wait() == [0, 0], "\n".join(map(tail, processes.logs))
    import_weights([source], tmp_path / "checkpoint")
    want = load_params(tmp_path / "checkpoint")
    for index in range(2):
        found = json.loads((out / f"{index}.json").read_text())
        assert found["own"] <= found["read"] < 1.02 * found["own"] < 0.7 * found["whole"]
        assert found["sums"].keys() == want.keys()
        for name, value in want.items():
            total = np.abs(np.asarray(value, np.float64)).sum()
            assert found["sums"][name] == pytest.approx(total, rel=1e-5), name
