"""Every check of `refvlm doctor` passes where it should and has a remedy where it fails."""

import dataclasses
import importlib.metadata
import json
import shutil
from collections import namedtuple

import jax
import pytest

from refvlm_jax import health
from refvlm_jax.cli.main import main
from refvlm_jax.health import State
from refvlm_jax.testing import self_test
from refvlm_jax.testing.toy import toy_config

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def installed(monkeypatch):
    """Pretends that packages have these versions; None removes one."""
    changes, real = {}, importlib.metadata.version

    def version(name):
        if changes.get(name, "") is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return changes.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    return changes


def assert_wrong(finding, found, remedy, state=State.FAIL):
    assert finding.state is state, finding
    assert found in finding.found and remedy in finding.remedy, finding


def test_this_machine_is_well(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("REFVLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(health, "check_cache", lambda: health.Finding("cache", State.OK, "kept"))
    monkeypatch.setattr(health, "SMALL_DISK", 0)
    assert main(["doctor", "--workdir", str(tmp_path), "--json"]) == 0
    findings = {row["check"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(findings) == [
        *("python", "versions", "libtpu", "devices", "mesh", "disk", "cache", "self-test")
    ]
    assert findings["python"]["state"] == findings["versions"]["state"] == "ok"
    assert "saved and resumed" in findings["self-test"]["found"]


def test_the_report_prints_the_remedy_and_fails(tmp_path, capsys, installed):
    installed["flax"] = "0.10.0"
    assert main(["doctor", "--workdir", str(tmp_path), "--skip-self-test"]) == 1
    output = capsys.readouterr().out
    assert "FAIL versions" in output and "-> pip install 'flax<0.13,>=0.12.8'" in output


def test_an_old_python(monkeypatch):
    info = namedtuple("info", "major minor micro")
    monkeypatch.setattr(health.sys, "version_info", info(3, 10, 4))
    assert_wrong(health.check_python(), "3.10.4", "3.11 or 3.12")


def test_versions(installed):
    installed["optax"] = None
    assert_wrong(health.check_versions(), "optax missing", "pip install optax")
    installed["optax"] = "0.1.0"
    assert_wrong(health.check_versions(), "optax 0.1.0", "pip install 'optax")
    del installed["optax"]
    installed["jaxlib"] = "0.9.0"
    assert_wrong(health.check_versions(), "jaxlib 0.9.0", "pip install 'jaxlib==")


def test_libtpu_must_be_the_one_jax_names(installed, monkeypatch):
    lines = ['libtpu==0.0.42.*; extra == "tpu"', "numpy>=2"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    installed.update(jax="0.10.2", libtpu="0.0.51")
    assert_wrong(health.check_libtpu(), "libtpu 0.0.51 with jax 0.10.2", "libtpu==0.0.42.*")
    installed["libtpu"] = "0.0.42.1"
    assert health.check_libtpu().state is State.OK
    installed["libtpu"] = None
    assert health.check_libtpu().state is State.OK
    monkeypatch.setenv("TPU_WORKER_ID", "0")
    assert_wrong(health.check_libtpu(), "missing on a TPU host", "jax[tpu]")


def test_devices(monkeypatch):
    assert health.check_devices().state is State.OK
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert_wrong(health.check_devices(), "cpu", "TPU or GPU host", State.WARN)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert_wrong(health.check_devices(), "NVIDIA driver", "jax[cuda12]")

    def broken():
        raise RuntimeError("Unable to initialize backend 'tpu'\nlong story")

    monkeypatch.setattr(jax, "devices", broken)
    assert_wrong(health.check_devices(), "initialize backend 'tpu'", "JAX_PLATFORMS")


def test_the_mesh_of_a_recipe():
    assert health.check_mesh(None).state is State.OK
    fits = toy_config(mesh={"preset": "fsdp", "shape": (1, -1, 1, 1)})
    assert health.check_mesh(fits).state is State.OK
    assert_wrong(health.check_mesh(toy_config()), "7 device(s) idle", "fsdp", State.WARN)
    odd = dataclasses.replace(fits.mesh, shape=(1, 3, 1, 1))
    assert_wrong(health.check_mesh(dataclasses.replace(fits, mesh=odd)), "mesh.shape", "field")


def test_the_disk(tmp_path, monkeypatch):
    assert "GiB free" in health.check_disk(tmp_path / "not" / "there").found
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(100, 99, 1))
    assert_wrong(health.check_disk(tmp_path), "0 GiB free", "ckpt.keep", State.WARN)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(health.tempfile, "TemporaryDirectory", refuse)
    assert_wrong(health.check_disk(tmp_path), "Permission denied", "--workdir")


def test_the_cache_folder(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    try:
        monkeypatch.setenv("REFVLM_CACHE", str(tmp_path))
        assert str(tmp_path) in health.check_cache().found
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("REFVLM_CACHE", str(tmp_path / "file"))
        assert_wrong(health.check_cache(), "file", "REFVLM_CACHE")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize(
    ("losses", "state"), [([1.0, 2.0], State.FAIL), ([1.0, float("nan")], State.FAIL)]
)
def test_wrong_numbers_fail_the_self_test(monkeypatch, losses, state):
    monkeypatch.setattr(self_test, "self_test", lambda: losses)
    assert_wrong(health.check_self_test(), "loss 1.000", "JAX_PLATFORMS=cpu", state)


def test_a_check_that_breaks_is_a_failure_and_stops_no_other(tmp_path, monkeypatch):
    def broken():
        raise KeyError("surprise")

    monkeypatch.setattr(health, "check_versions", broken)
    findings = {f.check: f for f in health.examine(None, tmp_path, self_test=False)}
    assert findings["versions"].state is State.FAIL and "surprise" in findings["versions"].found
    assert findings["disk"].state is not State.FAIL
