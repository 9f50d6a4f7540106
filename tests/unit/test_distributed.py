"""Joining a run, and which rows of a batch a process reads."""

from types import SimpleNamespace

import jax
import pytest

from refvlm_jax.cli.main import main
from refvlm_jax.config.errors import ConfigError
from refvlm_jax.mesh import agree
from refvlm_jax.mesh.build import data_shard
from refvlm_jax.train.distributed import Cluster, join, parse_cluster


def test_a_cluster_has_a_text_form():
    cluster = Cluster("host.name:9000", 16, 3)
    assert parse_cluster(str(cluster)) == cluster


@pytest.mark.parametrize("text", ["on", "host/2/0", "host:1/2", "host:1/2/x", "host:1/2/-1", ""])
def test_other_forms_are_refused(text):
    with pytest.raises(ConfigError, match=r"must be off, auto or HOST:PORT/COUNT/INDEX"):
        parse_cluster(text)
    with pytest.raises(ConfigError, match=r"process 2 of 2 does not exist"):
        parse_cluster("host:1/2/2")


def test_joining_tells_jax(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a: calls.append(a))
    join("off")
    join("host:1/1/0")
    assert not calls
    join("host:1/4/2")
    join("auto")
    assert calls == [("host:1", 4, 2), ()]


def test_auto_without_a_cluster_says_what_to_do(monkeypatch, tmp_path, capsys):
    def nothing():
        raise ValueError("coordinator_address should be defined.\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", nothing)
    recipe = tmp_path / "recipe.py"
    recipe.write_text("def get_config():\n    return {'name': 'x'}\n")
    command = ["train", "--config", str(recipe), "--workdir", str(tmp_path / "w")]
    assert main([*command, "--distributed", "auto"]) == 2
    error = capsys.readouterr().err
    assert "found no cluster (coordinator_address should be defined.)" in error
    assert "leave the option out" in error


class Device(SimpleNamespace):
    __hash__ = object.__hash__


def sharding(*parts):
    """A layout in which device k of process p holds rows `parts[p][k]`."""
    devices = {
        Device(process_index=process, id=(process, k)): (rows,)
        for process, own in enumerate(map(list, parts))
        for k, rows in enumerate(own)
    }
    return SimpleNamespace(
        devices_indices_map=lambda shape: devices, mesh=SimpleNamespace(shape={"fsdp": 2})
    )


@pytest.fixture
def as_process(monkeypatch):
    return lambda index: monkeypatch.setattr(jax, "process_index", lambda: index)


def test_processes_with_the_same_rows_read_the_same_part(as_process):
    low, high = slice(0, 4), slice(4, 8)
    expected = [(0, 2), (0, 2), (1, 2), (1, 2)]
    for process, part in enumerate(expected):
        as_process(process)
        assert data_shard(sharding([low], [low], [high], [high]), 8) == part
    # Rows that are not neighbours, as on a torus whose hosts are squares.
    first, second = [slice(0, 2), slice(4, 6)], [slice(2, 4), slice(6, 8)]
    as_process(1)
    assert data_shard(sharding(first, second), 8) == (1, 2)


def test_rows_that_overlap_or_are_nobodys_are_refused(as_process):
    as_process(0)
    with pytest.raises(ConfigError, match="overlapping rows"):
        data_shard(sharding([slice(0, 4)], [slice(2, 8)]), 8)
    as_process(5)
    with pytest.raises(ConfigError, match="no device of process 5"):
        data_shard(sharding([slice(0, 8)]), 8)


def test_one_process_agrees_with_itself(monkeypatch):
    assert agree.all_agree(True) and not agree.all_agree(False)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    answers = iter(([True, True], [True, False]))
    gathered = lambda mine: next(answers)  # noqa: E731
    monkeypatch.setattr(agree.multihost_utils, "process_allgather", gathered)
    assert agree.all_agree(True) and not agree.all_agree(True)
