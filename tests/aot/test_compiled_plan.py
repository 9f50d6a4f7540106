"""A tiny run planned for described hardware; skipped where its compiler is not installed."""

import importlib.util
import json
from pathlib import Path

import pytest

from refvlm_jax.cli.main import main
from refvlm_jax.config.resolve import load_config
from refvlm_jax.plan.pods import parse_pod
from refvlm_jax.plan.worker import make_plan

ROOT = Path(__file__).resolve().parents[2]
RECIPE = str(ROOT / "configs" / "shapes_tiny.py")
SMALL = [
    "mesh.preset=fsdp", "mesh.shape=(1,-1,1,1)", "model.llama.unroll_layers=False",
    "model.llama.remat=full", "model.llama.layers=2", "model.box=None", "model.mask=None",
    "optim.name=adamw", "data.seq_len=256",
]  # fmt: skip
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None, reason="the CUDA plugin is not installed"
)
pytestmark = pytest.mark.slow


@needs_libtpu
def test_a_tiny_run_is_compiled_for_tpus() -> None:
    found = make_plan(load_config(RECIPE, SMALL), parse_pod("v5e-16"))
    assert found["fits"] and found["method"] == "compiled" and found["devices"] == 16
    assert found["versions"]["libtpu"] != "not installed"
    ops = {op["op"]: op for op in found["collectives"]["ops"]}
    assert ops["all-gather"]["axes"] == ["fsdp"] and ops["all-gather"]["payload_bytes"] > 0
    assert 0 < found["time"]["mfu_bound"]["value"] <= 1


@needs_cuda
def test_a_tiny_run_is_compiled_for_gpus() -> None:
    kept = [field for field in SMALL if field != "model.box=None"]
    found = make_plan(load_config(RECIPE, kept), parse_pod("h100-8"))
    assert found["fits"] and found["method"] == "compiled" and found["devices"] == 8
    assert {"all-gather"} <= {op["op"] for op in found["collectives"]["ops"]}


def test_the_command_prints_json_and_says_no_with_its_status(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["plan", "--config", RECIPE, "--pod", "h100-1", "--analytic", "--json"]
    assert main([*arguments, *SMALL]) == 0
    assert json.loads(capsys.readouterr().out)["fits"] is True
    impossible = ["data.batch_size=131072", "mesh.preset=single", "mesh.shape=(1,1,1,1)"]
    assert main([*arguments, *SMALL, *impossible]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"].startswith("does not fit") and found["largest"]


def test_a_batch_that_does_not_divide_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--config", RECIPE, "--pod", "v5e-64", "--analytic", *SMALL]
    assert main(arguments) == 2
    assert "use a multiple of 64" in capsys.readouterr().err
