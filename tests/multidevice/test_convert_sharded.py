"""Sharded loading: the values, and that a process reads the bytes of its own shards alone."""

from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from refvlm_jax.ckpt.convert import safetensors_io
from refvlm_jax.ckpt.convert.import_ import import_weights
from refvlm_jax.ckpt.convert.orbax_io import open_checkpoint
from refvlm_jax.ckpt.convert.safetensors_io import write_safetensors
from refvlm_jax.ckpt.convert.sharded import load_sharded
from refvlm_jax.ckpt.convert.tensors import ConvertError

pytestmark = pytest.mark.multidevice
WIDTH, INNER = 8192, 64


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sharded") / "p.safetensors"
    rng = np.random.default_rng(0)
    shapes = {
        "0.weight": (WIDTH, INNER),
        "0.bias": (WIDTH,),
        "2.weight": (WIDTH, WIDTH),
        "2.bias": (WIDTH,),
    }
    arrays = [(f"projector.model.{k}", rng.random(s, np.float32)) for k, s in shapes.items()]
    write_safetensors(path, arrays)
    return path


def mesh() -> Mesh:
    return Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))


def test_values_from_both_formats(source: Path, tmp_path: Path) -> None:
    import_weights([source], tmp_path / "ck")
    stored = open_checkpoint(tmp_path / "ck")
    specs = {
        "projector.layers.0.kernel": PartitionSpec(None, "b"),
        "projector.layers.0.bias": PartitionSpec(("a", "b")),
        "projector.layers.1.bias": PartitionSpec(),
    }
    wanted = {name: NamedSharding(mesh(), spec) for name, spec in specs.items()}
    for path in (source, tmp_path / "ck"):
        found = load_sharded(path, wanted)
        for name, array in found.items():
            assert array.sharding == wanted[name]
            np.testing.assert_array_equal(array, stored.read("params", name))
    half = load_sharded(source, wanted, dtype=jax.numpy.bfloat16)
    assert all(array.dtype == jax.numpy.bfloat16 for array in half.values())
    with pytest.raises(ConvertError, match=r"has no projector\.layers\.7"):
        load_sharded(source, {"projector.layers.7.kernel": wanted["projector.layers.1.bias"]})


@pytest.mark.parametrize("spec", [PartitionSpec("a", None), PartitionSpec(None, "a")])
def test_bytes_that_are_read(source: Path, monkeypatch, spec: PartitionSpec) -> None:
    """Of a kernel halved over two devices either way, one of them reads one half of its file."""
    read = []
    fill = safetensors_io._fill
    monkeypatch.setattr(
        safetensors_io, "_fill", lambda f, s, row, p: (read.append(row.nbytes), fill(f, s, row, p))
    )
    two = Mesh(np.array(jax.devices()[:2]), ("a",))
    name = "projector.layers.1.kernel"
    found = load_sharded(source, {name: NamedSharding(two, spec)})[name]
    assert sum(read) == found.nbytes == WIDTH * WIDTH * 4


def test_inspect_names_the_shardings_of_a_run(tmp_path: Path) -> None:
    """Checkpoints that training wrote, in Orbax's own storage, are read and inspected alike."""
    import json

    import orbax.checkpoint as ocp

    from refvlm_jax.ckpt.convert.inspect import inspect_path

    value = np.arange(64, dtype=np.float32).reshape(8, 8)
    array = jax.device_put(value, NamedSharding(mesh(), PartitionSpec("a", "b")))
    with ocp.StandardCheckpointer() as writer:
        writer.save(tmp_path / "3" / "params", {"llama.norm.scale": array})
    (tmp_path / "3" / "meta").mkdir()
    (tmp_path / "3" / "meta" / "metadata").write_text(json.dumps({"schema_version": 1, "step": 3}))
    (entry,) = inspect_path(tmp_path)
    assert (entry.item, entry.name, entry.shape) == ("params", "llama.norm.scale", (8, 8))
    assert (entry.dtype, entry.nbytes, entry.sharding) == ("float32", 256, "[a, b]")
    np.testing.assert_array_equal(open_checkpoint(tmp_path).read("params", entry.name), value)
