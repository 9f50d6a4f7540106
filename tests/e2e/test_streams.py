"""Ways to arrange a run's rows, through `refvlm train`: mixtures, packing, length buckets."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from refvlm_jax.cli.quickstart import prepare
from refvlm_jax.cli.train import train
from refvlm_jax.config.resolve import load_config
from refvlm_jax.train.metrics import read_metrics

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "model.vision.layers=1",
    "model.llama.layers=1",
    "model.box.layers=1",
    "model.mask=None",
    "data.batch_size=4",
    "data.merge=1",
    "data.weights={}",
    "data.opening_steps=0",
    "data.opening_weights={}",
    "optim.name=adamw",
    "optim.warmup_steps=1",
    "optim.loss_weights={}",
    "train.steps=6",
    "train.log_every=1",
)
MIXTURE = """
about = "Referring and questions"

[[parts]]
source = "refcoco"
tasks = ["T17"]
weight = 3.0

[[parts]]
source = "v*"
tasks = ["T03"]
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    config = load_config(ROOT / "configs" / "shapes_tiny.py")
    assert config.world is not None
    world = replace(config.world, train=12, val=1, val_combos=1)
    return prepare(world, tmp_path_factory.mktemp("streams"))["train"]


def _read(data: Path, workdir: Path, *overrides: str) -> tuple[list[dict], Counter[str]]:
    """Records of a run's metrics, and the dialogues it read by task and source."""
    arguments = [*SMALL, f"data.path={data}", *overrides]
    assert train(load_config(ROOT / "configs" / "shapes_tiny.py", arguments), workdir) == 0
    records = [r for r in read_metrics(workdir / "metrics.jsonl") if "loss" in r]
    read: Counter[str] = Counter()
    for record in records:
        read.update({k: v for k, v in record.items() if k.startswith("data/")})
    return records, read


def test_a_packed_mixture_reads_what_it_names(data: Path, tmp_path: Path) -> None:
    (tmp_path / "mixture.toml").write_text(MIXTURE)
    packed = ("data.pack=True", "data.images=3", f"data.mixture={tmp_path / 'mixture.toml'}")
    records, read = _read(data, tmp_path / "run", *packed)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert {name for name in read if name.startswith("data/task/")} == {
        "data/task/T17", "data/task/T03",
    }  # fmt: skip
    # Several conversations a row.
    assert sum(n for name, n in read.items() if name.startswith("data/task/")) > 1.5 * 6 * 4
    assert not read["data/lost/rows"]


def test_buckets_train_at_every_length(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records, read = _read(data, tmp_path / "run", "data.buckets=(160,)")
    assert len(records) == 6 and all(record["loss"] > 0 for record in records)
    assert sum(n for name, n in read.items() if name.startswith("data/task/")) == 6 * 4
    assert "compiled anew" not in caplog.text
