"""Weights of `transformers` classes in and out, and the parity certificate of the result."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from refvlm_jax.ckpt.convert.part import parts
from refvlm_jax.config import model as cfg
from refvlm_jax.testing.torch_layout import tiny_config, torch_shapes, write_released

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch_bundle import language, vision  # noqa: E402

from refvlm_jax.ckpt.convert.export import export_weights  # noqa: E402
from refvlm_jax.ckpt.convert.import_ import import_weights  # noqa: E402
from refvlm_jax.ckpt.convert.orbax_io import open_checkpoint  # noqa: E402
from refvlm_jax.ckpt.convert.safetensors_io import write_safetensors  # noqa: E402
from refvlm_jax.ckpt.convert.tensors import ConvertError  # noqa: E402
from refvlm_jax.ckpt.convert.verify.certificate import certify  # noqa: E402
from refvlm_jax.cli.main import main  # noqa: E402

pytestmark = pytest.mark.parity

SAM = cfg.SamUnitConfig(
    encoder=cfg.SamEncoderConfig(
        image_size=64,
        width=32,
        layers=3,
        heads=4,
        mlp_dim=64,
        global_layers=(1,),
        window=3,
        out_width=32,
    ),
    layers=1,
    mlp_dim=24,
    iou_hidden=16,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model (grouped heads, two shards), a tower and a projector, saved by PyTorch."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("torch")
    language(num_hidden_layers=2, rope_theta=777.0).save_pretrained(folder, max_shard_size="60KB")
    vision().save_pretrained(folder / "visual_encoder")
    projector = torch.nn.Sequential(
        torch.nn.Linear(24, 48), torch.nn.GELU(), torch.nn.Linear(48, 48)
    )
    (folder / "projector").mkdir()
    state = {f"model.{k}": v for k, v in projector.state_dict().items()}
    torch.save(state, folder / "projector" / "pytorch_model.bin")
    config = {"model_type": "projector", "visual_hidden_size": 24, "llm_hidden_size": 48}
    (folder / "projector" / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def checkpoint(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ours") / "checkpoint"
    import_weights([source], out, pad_vocab=16)
    return out


def test_transformers_loads_what_was_exported(
    source: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert main(["convert", "export", str(checkpoint), str(out)]) == 0
    for kind, place in (
        (transformers.AutoModelForCausalLM, ""),
        (transformers.CLIPVisionModel, "visual_encoder"),
    ):
        first, loading = kind.from_pretrained(out / place, output_loading_info=True)
        assert not loading["missing_keys"] and not loading["unexpected_keys"]
        want = kind.from_pretrained(source / place).state_dict()
        found = first.state_dict()
        assert found.keys() == want.keys()
        assert all(torch.equal(found[key], want[key]) for key in want)


def test_certificate(source: Path, checkpoint: Path, tmp_path: Path, capsys) -> None:
    assert main(["convert", "verify", str(checkpoint), "--torch", str(source), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    names = {entry["name"] for entry in report["layers"]["entries"]}
    assert names == {
        *(f"vision.layer_{k}" for k in range(4)),
        "projector.layer_1",
        *(f"llama.{name}" for name in ("layer_0", "layer_1", "last_hidden", "logits")),
    }
    kept = json.loads((checkpoint / "parity_certificate_0.json").read_text())
    key = "llm.model.layers.1.self_attn.k_proj.weight"
    assert kept["passed"] and len(kept["tensors"][key]["sha256"]) == 64
    assert kept["layers_not_compared"] == []
    stored = open_checkpoint(checkpoint)
    assert stored.parameters["llama.embedding"].shape[0] == 80
    # One changed number is found by the hashes and by the layers.
    weights = {k: ref.read() for k, ref in _source(source).items()}
    weights[key] = weights[key] + np.float32(0.1)
    write_safetensors(tmp_path / "changed.safetensors", list(weights.items()))
    import_weights([source, tmp_path / "changed.safetensors"], tmp_path / "changed")
    found, entries = certify(tmp_path / "changed", source)
    assert not found["passed"] and found["tensors_different"] == [key]
    assert [e.name for e in entries if not e.passed] == ["llama.last_hidden", "llama.logits"]
    with pytest.raises(ConvertError, match="share no tensor"):
        import_weights([source / "projector"], tmp_path / "projector")
        certify(tmp_path / "projector", source / "visual_encoder")


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with every part that goes with the mask decoder, and the checkpoint made of it."""
    folder = tmp_path_factory.mktemp("released")
    write_released(folder, tiny_config())
    import_weights([folder], folder.with_name("released-checkpoint"))
    return folder, folder.with_name("released-checkpoint")


def decoder_rows(name: str, layers: int) -> list[str]:
    return [*(f"{name}.layer_{k}" for k in range(layers)), f"{name}.norm"]


def test_certificate_of_every_part(released: tuple[Path, Path], capsys) -> None:
    folder, checkpoint = released
    assert main(["convert", "verify", str(checkpoint), "--torch", str(folder)]) == 0
    assert "compared by their tensors alone: region_prompts\n" in capsys.readouterr().out
    kept = json.loads((checkpoint / "parity_certificate_0.json").read_text())
    assert kept["passed"] and kept["layers_not_compared"] == ["region_prompts"]
    names = [entry["name"] for entry in kept["layers"]["entries"]]
    assert {name.split(".")[0] for name in names} >= {"vision", "projector", "llama"}
    new = [name for name in names if name.split(".")[0] in ("tower", "box", "mask", "keypoint")]
    assert new == [
        *(f"tower.stage_{k}" for k in range(4)),
        *decoder_rows("box.decoder", 2),
        *decoder_rows("mask.decoder", 2),
        "mask.pixel_decoder",
        *decoder_rows("keypoint.box.decoder", 2),
        *decoder_rows("keypoint.decoder", 1),
    ]


def test_certificate_finds_a_change_in_every_part(
    released: tuple[Path, Path], tmp_path: Path
) -> None:
    """Beside one flat file, from which transformers cannot load its own two models."""
    changes = {
        "visual_tower.visual.trunk.stages.2.blocks.1.conv_dw.weight": [
            "tower.stage_2",
            "tower.stage_3",
        ],
        "visual_decoder.box.decoder.layers.1.encoder_attn.v_proj.weight": [
            "box.decoder.layer_1",
            "box.decoder.norm",
        ],
        "visual_decoder.mask.query_decoder.layernorm.bias": ["mask.decoder.norm"],
        "visual_decoder.mask.pixel_decoder.fpn.layers.1.proj.0.weight": ["mask.pixel_decoder"],
        "visual_decoder.pose.box_decoder.decoder.layers.0.fc2.bias": decoder_rows(
            "keypoint.box.decoder", 2
        ),
        "visual_decoder.pose.kpt_decoder.decoder.layers.0.self_attn.q_proj.weight": decoder_rows(
            "keypoint.decoder", 1
        ),
    }
    flat = tmp_path / "flat.safetensors"
    export_weights(released[1], flat)
    found, entries = certify(changed(flat, changes, tmp_path), flat)
    assert not found["passed"] and set(found["tensors_different"]) == changes.keys()
    assert [e.name for e in entries if not e.passed] == list(chain(*changes.values()))
    assert set(found["layers_not_compared"]) == {"vision", "llama", "region_prompts"}


def changed(source: Path, keys: Iterable[str], folder: Path) -> Path:
    """A checkpoint of the source in which one number of each of these tensors differs."""
    weights = {key: _source(source)[key].read().copy() for key in keys}
    for array in weights.values():
        array.flat[0] += 1
    write_safetensors(folder / "changed.safetensors", list(weights.items()))
    import_weights([source, folder / "changed.safetensors"], folder / "changed")
    return folder / "changed"


def test_certificate_of_sam(tmp_path: Path) -> None:
    """Beside SAM's own file, which does not have the map of the queries."""
    path, weights = write_foreign("sam", tmp_path / "sam_vit.pth")
    import_weights([path], tmp_path / "checkpoint")
    found, entries = certify(tmp_path / "checkpoint", path)
    assert found["passed"] and found["layers_not_compared"] == []
    encoder = [*(f"sam.encoder.layer_{k}" for k in range(3)), "sam.encoder.embedding"]
    one, many = ([f"sam.decoder.{n}.{k}" for k in ("masks", "quality")] for n in ("one", "many"))
    assert [e.name for e in entries] == [*encoder, *one, *many]
    at = "visual_decoder.mask.sam."
    changes = {
        f"{at}image_encoder.blocks.1.attn.rel_pos_h": encoder[1:],
        f"{at}mask_decoder.output_hypernetworks_mlps.2.layers.0.weight": many[:1],
    }
    found, entries = certify(changed(path, changes, tmp_path), path)
    assert not found["passed"] and set(found["tensors_different"]) == changes.keys()
    assert [e.name for e in entries if not e.passed] == list(chain(*changes.values()))
    # What PyTorch lacks cannot run; the tensors say so.
    key = f"{at}prompt_encoder.no_mask_embed.weight"
    rest = [(k, array) for k, array in weights.items() if k != key]
    write_safetensors(tmp_path / "rest.safetensors", rest)
    found, entries = certify(tmp_path / "checkpoint", tmp_path / "rest.safetensors")
    assert not entries and found["layers_not_compared"] == ["sam"]
    assert not found["passed"] and found["tensors_different"] == [key]


def write_foreign(name: str, path: Path, **other: "torch.Tensor") -> tuple[Path, dict]:
    """A part's .pth as its own project releases it, and its weights by our PyTorch keys."""
    (part,) = (part for part in parts() if part.name == name)
    rng, start = np.random.default_rng(0), "sam." if name == "sam" else ""
    own = {
        key: rng.standard_normal(shape).astype(np.float32)
        for key, shape in torch_shapes(replace(tiny_config(), sam=SAM), part).items()
        if key.startswith(start)
    }
    path.parent.mkdir(exist_ok=True)
    torch.save({k.removeprefix(start): torch.from_numpy(v) for k, v in own.items()} | other, path)
    return path, {part.prefix + k: v for k, v in own.items()}


def _source(path: Path) -> dict:
    from refvlm_jax.ckpt.convert.reader import open_source

    return open_source(path).tensors


def test_torch_files_nested_and_half_precision(tmp_path: Path) -> None:
    """A training checkpoint: nested, of several dtypes, without the frozen parts."""
    torch.manual_seed(2)
    model = language(num_hidden_layers=1, head_dim=128).bfloat16()
    state = {f"llm.{k}": v for k, v in model.state_dict().items()}
    torch.save({"state_dict": state, "meta": {"iter": 3}}, tmp_path / "iter_3.pth")
    import_weights([tmp_path / "iter_3.pth"], tmp_path / "ck")
    export_weights(tmp_path / "ck", tmp_path / "back.safetensors")
    back = _source(tmp_path / "back.safetensors")
    assert back.keys() == state.keys()
    for key, tensor in state.items():
        assert back[key].read().tobytes() == tensor.view(torch.int16).numpy().tobytes()


def test_files_of_other_projects(tmp_path: Path) -> None:
    """SAM's own .pth and an open_clip folder; text halves and pixel constants are left out."""
    files = {}
    for name, place, other in (
        ("sam", "sam_vit.pth", "pixel_mean"),
        ("tower", "clip/open_clip_pytorch_model.bin", "text.token_embedding.weight"),
    ):
        files[name] = write_foreign(name, tmp_path / place, **{other: torch.ones(3)})
    (tmp_path / "clip" / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 7}}')
    for name, (path, own) in files.items():
        source = path.parent if name == "tower" else path
        plan = import_weights([source], tmp_path / name)
        assert len(plan.ignored) == 1
        export_weights(tmp_path / name, tmp_path / f"{name}-out")
        back = _source(tmp_path / f"{name}-out")
        assert back.keys() == own.keys()
        assert all(back[key].read().tobytes() == own[key].tobytes() for key in own)
    kept = json.loads(
        (tmp_path / "tower-out" / "visual_tower" / "open_clip_config.json").read_text()
    )
    assert kept == {"model_cfg": {"embed_dim": 7}}


def test_inspect_touches_no_device(checkpoint: Path, capsys) -> None:
    assert main(["convert", "inspect", str(checkpoint), "--json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert entries["llama.blocks.block.attn.k.kernel"]["shape"] == [2, 48, 2, 8]
    assert entries["llama.blocks.block.attn.k.kernel"]["nbytes"] == 2 * 48 * 16 * 4
    # A platform that does not exist would fail at the first use of a device.
    command = ["convert", "inspect", str(checkpoint)]
    code = f"from refvlm_jax.cli.main import main; raise SystemExit(main({command}))"
    env = {**os.environ, "JAX_PLATFORMS": "no_such_platform"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "float32[2, 48, 2, 8]" in done.stdout and "arrays" in done.stdout
