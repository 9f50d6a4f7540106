"""`refvlm convert verify`: every public bundle, bundles of other sizes, and what it must catch."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from refvlm_jax.ckpt.convert.tensors import ConvertError
from refvlm_jax.ckpt.convert.verify.bundle import open_bundle
from refvlm_jax.ckpt.convert.verify.compare import compare, compare_norms
from refvlm_jax.ckpt.convert.verify.golden import verify_bundle
from refvlm_jax.cli.main import main

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"
NAMES = (
    "convnext",
    "refvlm_box_mask",
    "refvlm_tower",
    "refvlm_pose",
    "refvlm_adapter_box",
    "refvlm_adapter_mask",
    "sam_mask",
)
pytestmark = pytest.mark.parity


def recorded(name: str) -> Path:
    path = GOLDEN / name
    if not (GOLDEN / f"{name}.config.json").exists():
        pytest.skip("no golden bundle")
    return path


@pytest.mark.slow(1)
@pytest.mark.parametrize("name", NAMES)
def test_every_recorded_number(name: str) -> None:
    path = recorded(name)
    entries = verify_bundle(path)
    wanted = load_file(f"{path}.tensors.safetensors")
    assert {entry.name for entry in entries} == {k for k in wanted if not k.startswith("in.")}
    assert [entry for entry in entries if not entry.passed] == []


def test_tables_agree_with_the_mapping_by_hand() -> None:
    import golden_weights

    path = recorded("refvlm_box_mask")
    bundle = open_bundle(path)
    want = golden_weights.refvlm(load_file(f"{path}.weights.safetensors"), dict(bundle.config))
    found = bundle.params()
    assert found.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"cutoff": 27, "rope_theta": 500.0, "num_key_value_heads": 6},
        {"tie_word_embeddings": True, "head_dim": 16, "num_hidden_layers": 1},
    ],
)
def test_other_sizes(tmp_path: Path, sizes: dict) -> None:
    pytest.importorskip("torch")
    from torch_bundle import write_bundle

    write_bundle(tmp_path / "made", **sizes)
    entries = verify_bundle(tmp_path / "made")
    assert [entry for entry in entries if not entry.passed] == []
    names = {entry.name for entry in entries}
    assert {"out.llm_last_hidden", "loss.loss"} <= names
    assert "grad.llm.model.layers.0.self_attn.k_proj.weight" in names


def test_command_line_reports_and_fails_on_a_wrong_number(tmp_path: Path, capsys) -> None:
    source = recorded("convnext")
    for ending in ("config.json", "weights.safetensors", "tensors.safetensors"):
        shutil.copy(f"{source}.{ending}", tmp_path / f"copy.{ending}")
    assert main(["convert", "verify", str(tmp_path / "copy"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] and report["compared"] == 5 and report["failed"] == []
    assert report["entries"][0].keys() >= {"name", "max_abs_error", "max_relative_error", "passed"}
    tensors = load_file(tmp_path / "copy.tensors.safetensors")
    tensors["out.stage2"] = tensors["out.stage2"] + np.float32(1e-2)
    tensors["out.unheard_of"] = np.zeros(3, np.float32)
    save_file(tensors, tmp_path / "copy.tensors.safetensors")
    assert main(["convert", "verify", str(tmp_path / "copy")]) == 1
    printed = capsys.readouterr().out
    assert "out.stage2" in printed and "NO" in printed and "not computed" in printed
    assert main(["convert", "verify", str(tmp_path / "copy"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert sorted(report["failed"]) == ["out.stage2", "out.unheard_of"]


def test_weights_that_do_not_fit_the_configuration(tmp_path: Path) -> None:
    source = recorded("convnext")
    for ending in ("config.json", "weights.safetensors", "tensors.safetensors"):
        shutil.copy(f"{source}.{ending}", tmp_path / f"copy.{ending}")
    config = json.loads((tmp_path / "copy.config.json").read_text())
    config["dims"][1] += 16
    (tmp_path / "copy.config.json").write_text(json.dumps(config))
    with pytest.raises(ConvertError, match="visual_tower configuration expects"):
        verify_bundle(tmp_path / "copy")
    (tmp_path / "copy.weights.safetensors").unlink()
    with pytest.raises(ConvertError, match="is missing"):
        verify_bundle(tmp_path / "copy")
    with pytest.raises(ConvertError, match="is no bundle"):
        verify_bundle(tmp_path / "nothing")


def test_errors_are_relative_to_the_largest_magnitude() -> None:
    want = np.array([1.0, 1e-6, -2.0], np.float32)
    assert compare("x", want + 1e-4, want, 1e-4).passed
    assert not compare("x", want + 1e-3, want, 1e-4).passed
    assert not compare("x", np.array([1.0, np.nan, -2.0]), want, 1e-4).passed
    assert not compare("x", want[:2], want, 1e-4).passed
    assert not compare("x", np.array([1, 2]), np.array([1, 3]), 1e-4).passed


def test_norms_of_true_zeros_are_noise_and_others_are_not() -> None:
    want = {
        k: np.array([v], np.float32) for k, v in {"big": 2.0, "zero": 3e-9, "small": 1e-3}.items()
    }
    found = {"big": 2.0, "zero": 7e-9, "small": 1.1e-3}
    assert [e.passed for e in compare_norms(found, want)] == [True, False, True]
    assert not compare_norms({"big": 2.0, "zero": 0.0}, want)[1].passed
