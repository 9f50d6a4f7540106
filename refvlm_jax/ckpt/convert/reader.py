"""Sources of PyTorch weights: any supported file or folder as tensors under one naming.

Every layout is brought to the key names of a training checkpoint (`llm.`, `visual_encoder.`,
`projector.`, `vpt_encoder.`, `visual_decoder.box.`, ...), with one configuration tree in the form of
the released config.json files.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refvlm_jax.ckpt.convert.part import part_for_type, parts, put
from refvlm_jax.ckpt.convert.safetensors_io import open_safetensors
from refvlm_jax.ckpt.convert.tensors import ConvertError, TensorRef
from refvlm_jax.ckpt.convert.torch_io import open_torch

CONFIG_KEY = "refvlm_config"
"""Where a flat safetensors file keeps the configuration tree in its metadata."""
ROOT_CONFIG = "refvlm.json"
"""In an export folder: what belongs to the whole model and to none of its parts."""
OPEN_CLIP_CONFIG = "open_clip_config.json"
_ADAPTERS = {"llm_adapter": "llm.", "visual_encoder_adapter": "visual_encoder."}
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_TORCH = (".bin", ".pth", ".pt")


@dataclass
class Source:
    """Tensors by training-checkpoint key, and what is known of the configuration."""

    tensors: dict[str, TensorRef] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    def add(self, other: "Source", prefix: str = "") -> None:
        """Takes over another source; it wins where both have a tensor or a field."""
        self.tensors |= {prefix + key: ref for key, ref in other.tensors.items()}
        _merge(self.config, other.config)


def open_sources(paths: Sequence[Path], config: Path | None = None) -> Source:
    """Opens several sources as one; later ones win, a configuration file wins over all.

    Raises:
      ConvertError: a path is missing, damaged or of no known kind.
    """
    found = Source()
    for path in paths:
        found.add(open_source(path))
    if config is not None:
        _merge(found.config, read_config(config))
    return found


def open_source(path: Path) -> Source:
    """Opens one file or folder (see the package's documentation for the kinds)."""
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise ConvertError(f"{path} does not exist; give a file or folder with weights")
    if path.suffix == ".safetensors":
        return _flat_safetensors(path)
    if path.suffix in _TORCH:
        return Source(_canonical(open_torch(path)))
    raise ConvertError(
        f"{path} is of no known kind; expected a folder, .safetensors, {', '.join(_TORCH)}"
    )


def read_config(path: Path) -> dict[str, Any]:
    """A configuration tree: of a bundle, or a single config.json placed by its `model_type`."""
    file = path / "config.json" if path.is_dir() else path
    tree = read_json(file)
    part = part_for_type(str(tree.get("model_type")))
    if part is None:
        return tree
    placed: dict[str, Any] = {}
    put(placed, part.field, _own_config(tree))
    return placed


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or a ConvertError that names the file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = " ".join(str(error).split())
        raise ConvertError(f"{path} cannot be read as JSON ({why}); restore it") from error
    if not isinstance(found, dict):
        raise ConvertError(f"{path} must hold a JSON object")
    return found


def _flat_safetensors(path: Path) -> Source:
    file = open_safetensors(path)
    config: dict[str, Any] = {}
    if CONFIG_KEY in file.metadata:
        try:
            config = json.loads(file.metadata[CONFIG_KEY])
        except ValueError as error:
            raise ConvertError(f"{path}: its {CONFIG_KEY} is no JSON; export it again") from error
    beside = path.with_name(path.name.removesuffix(".weights.safetensors") + ".config.json")
    if not config and path.name.endswith(".weights.safetensors") and beside.is_file():
        config = read_json(beside)
    return Source(_canonical(file.tensors), config)


def _folder(path: Path) -> Source:
    """A folder of one model, an export folder with sub-folders, or both."""
    if any(path.glob("*/params/_METADATA")) or (path / "params" / "_METADATA").exists():
        raise ConvertError(
            f"{path} is a checkpoint of this library already; use `refvlm convert export` on it"
        )
    if any(path.glob("*zero_pp_rank*")) or any(path.glob("*/*zero_pp_rank*")):
        raise ConvertError(
            f"{path} holds DeepSpeed shards; consolidate them with its zero_to_fp32.py first"
        )
    found = _one_model(path)
    if (path / ROOT_CONFIG).is_file():
        found.config |= read_json(path / ROOT_CONFIG)
    for part in parts():
        if part.folder and (path / part.folder).is_dir():
            inner = _one_model(path / part.folder, part.prefix)
            found.add(inner)
    for name, prefix in _ADAPTERS.items():
        if (path / name).is_dir():
            found.add(_adapter(path / name, prefix))
    _refuse_foreign_folders(path)
    if not found.tensors:
        raise ConvertError(
            f"{path} holds no weights; expected config.json with *.safetensors or *.bin, or the "
            f"sub-folders {', '.join(p.folder for p in parts() if p.folder)}"
        )
    return found


def _one_model(path: Path, prefix: str | None = None) -> Source:
    """The weights directly in a folder; `prefix` is known for sub-folders of an export."""
    if (path / "adapter_config.json").is_file():
        return _adapter(path, prefix or "llm.")
    tensors = _weights(path)
    if not tensors:
        return Source()
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if (path / OPEN_CLIP_CONFIG).is_file():
        return Source(
            {f"visual_tower.{k}": t for k, t in tensors.items()}, _tower_config(path, config)
        )
    if prefix is None:
        part = part_for_type(str(config.get("model_type")))
        if part is None and not config:
            return Source(_canonical(tensors))
        if part is None:
            known = [t for p in parts() for t in p.model_types]
            raise ConvertError(
                f"{path / 'config.json'}: model_type {config.get('model_type')!r} is not "
                f"supported; expected one of {', '.join(known)}"
            )
        prefix = part.prefix
    placed: dict[str, Any] = {}
    if config:
        put(placed, prefix.removesuffix("."), _own_config(config))
    return Source(_canonical({prefix + k: t for k, t in tensors.items()}), placed)


def _tower_config(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What open_clip's file says, and the sizes if the folder was exported here."""
    own = config if config.get("model_type") == "convnext_tower" else {}
    return {"visual_tower": {**own, **read_json(path / OPEN_CLIP_CONFIG)}}


def _own_config(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of the vision half of a full CLIP model; everything else unchanged."""
    if config.get("model_type") == "clip" and isinstance(config.get("vision_config"), dict):
        return {**config["vision_config"], "model_type": "clip_vision_model"}
    return {k: v for k, v in config.items() if k != "auto_map"}


def _adapter(path: Path, prefix: str) -> Source:
    """A PEFT folder."""
    config = read_json(path / "adapter_config.json")
    if prefix != "llm.":
        raise ConvertError(
            f"{path}: LoRA on the vision tower is not supported; merge it into the tower first"
        )
    tensors = {f"{prefix}{k}": t for k, t in _weights(path, "adapter_model").items()}
    return Source(_canonical(tensors), {"llm_lora": config})


def _weights(path: Path, stem: str = "") -> dict[str, TensorRef]:
    """Tensors of every weight file directly in a folder, safetensors first."""
    for name in (*_INDEXES, *(p.name for p in sorted(path.glob("*.safetensors.index.json")))):
        if (path / name).is_file():
            return _indexed(path, read_json(path / name), name)
    for suffix in (".safetensors", ".bin"):
        files = sorted(path.glob(f"{stem or ''}*{suffix}"))
        if suffix == ".bin":
            files = [f for f in files if f.name != "training_args.bin"]
        if files:
            return {k: t for f in files for k, t in _file(f).items()}
    return {}


def _indexed(path: Path, index: dict[str, Any], name: str) -> dict[str, TensorRef]:
    places = index.get("weight_map")
    if not isinstance(places, dict):
        raise ConvertError(f"{path / name} has no weight_map; download it again")
    files: dict[str, dict[str, TensorRef]] = {}
    tensors = {}
    for key, file in places.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise ConvertError(
                f"{path / name} points outside its folder ({file!r}); it is not to be trusted"
            )
        if file not in files:
            if not (path / file).is_file():
                raise ConvertError(f"{path / file} is missing but named by {name}; download it")
            files[file] = _file(path / file)
        if key not in files[file]:
            raise ConvertError(
                f"{path / file} lacks {key}, which {name} promises; download it again"
            )
        tensors[key] = files[file][key]
    return tensors


def _file(path: Path) -> dict[str, TensorRef]:
    return open_safetensors(path).tensors if path.suffix == ".safetensors" else open_torch(path)


def _refuse_foreign_folders(path: Path) -> None:
    if (path / "depth_decoder").is_dir():
        raise ConvertError(
            f"{path / 'depth_decoder'} holds the depth decoder, which never ran in PyTorch and has no "
            "name table; move the folder away to convert the rest"
        )


_LORA_PART = re.compile(r"\.lora_([AB])\.[A-Za-z0-9_]+\.weight$")


def _canonical(tensors: dict[str, TensorRef]) -> dict[str, TensorRef]:
    """Keys as a plain training checkpoint has them: no wrappers of DDP, PEFT or newer classes."""
    if tensors and all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): ref for key, ref in tensors.items()}
    if any(key.startswith("image_encoder.patch_embed.") for key in tensors):
        return {f"visual_decoder.mask.sam.{key}": ref for key, ref in tensors.items()}
    if any(key.startswith("visual.trunk.") for key in tensors):
        return {f"visual_tower.{key}": ref for key, ref in tensors.items()}
    return {_plain(key): ref for key, ref in tensors.items()}


def _plain(key: str) -> str:
    key = key.replace(".base_model.model.", ".", 1).replace(".base_layer.", ".")
    key = key.removeprefix("base_model.model.")
    key = _LORA_PART.sub(r".lora_\1.weight", key)
    clip = "visual_encoder."
    if key.startswith(tuple(clip + n for n in ("embeddings.", "pre_layrnorm.", "encoder.",
                                               "post_layernorm."))):  # fmt: skip
        return f"{clip}vision_model.{key.removeprefix(clip)}"
    return key


def _merge(tree: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = value
