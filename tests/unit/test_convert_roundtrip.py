"""Import, export and import again: every tensor bit for bit, in any layout of the source."""

import json
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from refvlm_jax.ckpt.convert.export import export_weights
from refvlm_jax.ckpt.convert.import_ import EXTRA, import_weights
from refvlm_jax.ckpt.convert.orbax_io import open_checkpoint
from refvlm_jax.ckpt.convert.part import parts
from refvlm_jax.ckpt.convert.reader import open_source
from refvlm_jax.ckpt.convert.safetensors_io import write_safetensors
from refvlm_jax.ckpt.convert.tensors import ConvertError
from refvlm_jax.ckpt.manager import load_params
from refvlm_jax.cli.run import build_model
from refvlm_jax.config.model import LoraConfig, RefVLMConfig
from refvlm_jax.config.resolve import resolve
from refvlm_jax.testing.torch_layout import (
    released_config,
    tiny_config,
    torch_shapes,
    write_released,
)
from refvlm_jax.train.model_def import define

KEYS = Path(__file__).resolve().parents[2].parent / "shared" / "spec" / "state_dict_keys.txt"
Arrays = dict[str, np.ndarray]


def tensors(path: Path) -> Arrays:
    return {key: ref.read() for key, ref in open_source(path).tensors.items()}


def same(found: Arrays, want: Arrays) -> None:
    assert found.keys() == want.keys()
    for key, array in want.items():
        assert (found[key].dtype, found[key].shape) == (array.dtype, array.shape), key
        assert found[key].tobytes() == array.tobytes(), key


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    write_released(folder, tiny_config(), shard_bytes=200_000)
    return folder


@pytest.fixture(scope="module")
def imported(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "checkpoint"
    import_weights([released], out)
    return out


def test_round_trip(released: Path, imported: Path, tmp_path: Path) -> None:
    want = tensors(released)
    stored = open_checkpoint(imported)
    assert set(stored.items[EXTRA]) == {
        f"extra.{key}"
        for key in (
            "visual_decoder.mask.queries_embedder.weight",
            "visual_encoder.vision_model.post_layernorm.weight",
            "visual_encoder.vision_model.post_layernorm.bias",
            "visual_tower.visual.trunk.head.norm.weight",
            "visual_tower.visual.trunk.head.norm.bias",
        )
    }
    export_weights(imported, tmp_path / "folder", shard_bytes=150_000)
    export_weights(imported, tmp_path / "flat.safetensors")
    same(tensors(tmp_path / "folder"), want)
    same(tensors(tmp_path / "flat.safetensors"), want)
    for name in ("folder", "flat.safetensors"):
        import_weights([tmp_path / name], tmp_path / f"again-{name}")
        again = open_checkpoint(tmp_path / f"again-{name}")
        assert again.items == stored.items
        assert again.meta["checksums"] == stored.meta["checksums"]
        assert again.meta["config"] == stored.meta["config"]


def test_an_imported_model_section_configures_a_run(imported: Path) -> None:
    """What `eval` and `train` take: the section resolves, and its model holds the parameters."""
    stored = open_checkpoint(imported)
    run = {"name": "imported", "data": {"kpt_refs": 1}, "model": stored.meta["config"]["model"]}
    config = resolve(run)
    assert config.model.tower is not None and type(config.model) is RefVLMConfig
    model = define(lambda rngs: build_model(config, rngs))
    assert model.shapes == {name: info.shape for name, info in stored.parameters.items()}
    model.check(load_params(imported))


def test_exported_folder(imported: Path, tmp_path: Path) -> None:
    export_weights(imported, tmp_path / "out")
    for part in parts():
        if (tmp_path / "out" / part.folder).is_dir():
            config = json.loads((tmp_path / "out" / part.folder / "config.json").read_text())
            assert config["model_type"] == part.model_types[0] and "auto_map" not in config
    box = json.loads((tmp_path / "out" / "box_decoder" / "config.json").read_text())
    assert box["quries_input_dim"] == 256 and box["encoder_input_dim"] == [8, 12, 16, 64]


def test_training_checkpoints_adapters_and_padding(tmp_path: Path) -> None:
    """Wrapped keys, mixed dtypes, LoRA, and a vocabulary made a multiple of 16."""
    config, rng = tiny_config(), np.random.default_rng(0)
    llama = next(part for part in parts() if part.name == "llama")
    lora = replace(
        config, llama=replace(config.llama, lora=LoraConfig(rank=2, targets=("q", "up")))
    )
    own: Arrays = {}
    for key, shape in torch_shapes(lora, llama).items():
        dtype = np.float32 if "lora" in key else ml_dtypes.bfloat16
        own[f"llm.{key}"] = rng.standard_normal(shape).astype(dtype)
    # One layer in another dtype: the stack widens and the export narrows again.
    odd = "llm.model.layers.1.mlp.down_proj.weight"
    own[odd] = own[odd].astype(np.float32) + np.float32(1e-6)
    wrapped = {}
    for key, array in own.items():
        name = key.replace("llm.", "module.llm.base_model.model.")
        wrapped[
            name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")
        ] = array
    write_safetensors(tmp_path / "w.safetensors", list(wrapped.items()))
    with pytest.raises(ConvertError, match="LoRA alpha"):
        import_weights([tmp_path / "w.safetensors"], tmp_path / "ck")
    given = tmp_path / "given.json"
    given.write_text(json.dumps({"llm_lora": {"lora_alpha": 8}}))
    import_weights([tmp_path / "w.safetensors"], tmp_path / "ck", config=given, pad_vocab=16)
    stored = open_checkpoint(tmp_path / "ck")
    assert stored.parameters["llama.embedding"].shape == (48, 256)
    section = stored.meta["config"]["model"]["llama"]
    assert (section["vocab_size"], section["vocab_padding"]) == (45, 3)
    assert not stored.read("params", "llama.lm_head")[:, 45:].any()
    export_weights(tmp_path / "ck", tmp_path / "adapter", lora="adapter")
    same(tensors(tmp_path / "adapter"), own)
    export_weights(tmp_path / "ck", tmp_path / "merged")
    merged = tensors(tmp_path / "merged")
    key = "llm.model.layers.1.self_attn.q_proj"
    a, b = own[f"{key}.lora_A.weight"], own[f"{key}.lora_B.weight"]
    want = own[f"{key}.weight"].astype(np.float32) + (8 / 2) * (b @ a)
    found = merged[f"{key}.weight"]
    assert found.dtype == ml_dtypes.bfloat16 and not any("lora" in k for k in merged)
    np.testing.assert_allclose(found.astype(np.float32), want, rtol=1e-2, atol=1e-2)
    assert merged["llm.lm_head.weight"].shape == (45, 256) and merged[odd].dtype == np.float32
    export_weights(tmp_path / "ck", tmp_path / "half", dtype="float16")
    assert {a.dtype for a in tensors(tmp_path / "half").values()} == {np.dtype(np.float16)}


def test_what_cannot_be_converted_leaves_nothing(
    released: Path, imported: Path, tmp_path: Path
) -> None:
    flat = tmp_path / "flat.safetensors"
    export_weights(imported, flat)
    own = tensors(flat)
    config = json.loads(json.dumps(open_source(flat).config))
    (tmp_path / "c.json").write_text(json.dumps(config))
    broken = {
        "missing": (
            {k: v for k, v in own.items() if "layers.1.mlp.up_proj" not in k},
            "is missing",
        ),
        "shape": ({**own, "llm.model.norm.weight": np.ones(3, np.float16)}, "expects"),
        "unknown": ({**own, "strange.weight": np.ones(3)}, "belongs to no known part"),
        "depth": ({**own, "visual_decoder.depth.x": np.ones(3)}, "depth decoder"),
    }
    for name, (weights, problem) in broken.items():
        write_safetensors(tmp_path / f"{name}.safetensors", list(weights.items()))
        with pytest.raises(ConvertError, match=problem):
            import_weights(
                [tmp_path / f"{name}.safetensors"], tmp_path / "out", config=tmp_path / "c.json"
            )
    with pytest.raises(ConvertError, match="exists already"):
        import_weights([released], imported)
    with pytest.raises(ConvertError, match="is a checkpoint of this library already"):
        import_weights([imported], tmp_path / "out")
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


def test_a_damaged_checkpoint_is_not_exported(released: Path, tmp_path: Path) -> None:
    import_weights([released / "projector"], tmp_path / "ck")
    chunk = next(
        p
        for p in (tmp_path / "ck/0/params/projector.layers.0.kernel").iterdir()
        if p.name != ".zarray"
    )
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(ConvertError, match=r"projector\.layers\.0\.kernel.*checksum"):
        export_weights(tmp_path / "ck", tmp_path / "out")
    chunk.write_bytes(data[:-3])
    with pytest.raises(ConvertError, match=r"projector\.layers\.0\.kernel cannot be read"):
        export_weights(tmp_path / "ck", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["ck"]


@pytest.mark.skipif(not KEYS.exists(), reason="no key list")
def test_names_and_shapes_of_the_released_model() -> None:
    """The tables against the recorded list of every tensor of the original classes."""
    recorded: dict[str, dict[str, tuple]] = {}
    section: dict[str, tuple] = {}
    for line in KEYS.read_text().splitlines():
        if line.startswith("#####"):
            section = recorded.setdefault(line.split()[1].rstrip(":"), {})
        elif line.startswith("   ") and line.rstrip().endswith(")") and ":" not in line:
            key, _, shape = line.strip().partition(" (")
            section[key] = tuple(int(n) for n in shape.rstrip(")").split(",") if n.strip())
    config, adapted = released_config(sam=True), released_config(adapter=True)
    of = {part.name: torch_shapes(config, part) for part in parts() if part.name != "adapter"}
    (adapter,) = (part for part in parts() if part.name == "adapter")
    assert torch_shapes(adapted, adapter) == recorded["vd_adapter"]
    assert of["projector"] == recorded["projector"]
    assert of["region_prompts"] == recorded["vpt"]
    assert of["box"] == recorded["box"]
    assert of["mask"] == recorded["mask"]
    assert of["keypoint"] == recorded["pose"]
    sam = {k.removeprefix("sam."): v for k, v in of["sam"].items() if k.startswith("sam.")}
    assert len(sam) == 594 and recorded["sam_h"].items() <= sam.items()
    assert of["sam"]["in_proj_queries.2.weight"] == (256, 4096)
    vision = recorded["convnext_large"]
    for name, start in (("vision", ""), ("tower", "visual.trunk.")):
        own = {
            k: v for k, v in vision.items() if k.startswith("vision_model") == (name == "vision")
        }
        assert {start + k: v for k, v in own.items()}.items() <= of[name].items()
    assert len(of["vision"]) == 391 and len(of["tower"]) == 342
