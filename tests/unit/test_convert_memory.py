"""Peak memory of a conversion: the largest stacked tensor and 1 GiB, whatever the model's size."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from refvlm_jax.testing.torch_layout import released_config, write_released

STEP = """
import json, re, sys
from pathlib import Path
from refvlm_jax.ckpt.convert.export import export_weights
from refvlm_jax.ckpt.convert.import_ import import_weights
kind, source, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
import_weights([source], out) if kind == "import" else export_weights(source, out)
# Not ru_maxrss: a child inherits the peak of the process that started it.
status = Path("/proc/self/status").read_text()
print(json.dumps(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024))
"""


@pytest.mark.slow(1)
def test_three_gigabytes_in_little_memory(tmp_path: Path) -> None:
    layers = 7
    whole = released_config(layers)
    config = replace(whole, box=None, mask=None, keypoint=None, tower=None)
    assert write_released(tmp_path / "source", config) > 3e9
    largest = layers * 4096 * 11008 * 2
    for kind, source, out in (("import", "source", "ck"), ("export", "ck", "back")):
        command = [sys.executable, "-c", STEP, kind, str(tmp_path / source), str(tmp_path / out)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) < largest + 2**30
