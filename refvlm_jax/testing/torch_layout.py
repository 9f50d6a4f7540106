"""Folders in the layout of the released PyTorch exports, with random numbers in the true shapes."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from refvlm_jax.ckpt.convert.model_config import table
from refvlm_jax.ckpt.convert.part import Part, parts
from refvlm_jax.ckpt.convert.safetensors_io import Entry, SafetensorsWriter
from refvlm_jax.ckpt.convert.tensors import DTYPES, Shape
from refvlm_jax.ckpt.convert.whole import WholeConfig
from refvlm_jax.config.model import (
    AdapterConfig,
    BoxUnitConfig,
    ConvNextConfig,
    KeypointUnitConfig,
    LlamaConfig,
    MaskUnitConfig,
    SamUnitConfig,
    VisionConfig,
)

_FEATURES = (0, 1, 2, 4)
_POOL = 1 << 24


def released_config(
    layers: int | None = None, *, adapter: bool = False, sam: bool = False
) -> WholeConfig:
    """Vicuna-7B, CLIP ViT-L/14-336, ConvNeXt-L and the decoders as released.

    Args:
      layers: at most so many layers of the language model, of the tower and of each of its stages.
      adapter: with the optional two-way adapter, which no released recipe has.
      sam: with Segment Anything; released runs have it instead of the mask decoder.
    """
    box = BoxUnitConfig(features=_FEATURES)
    config = WholeConfig(
        box=box,
        mask=MaskUnitConfig(features=_FEATURES),
        keypoint=KeypointUnitConfig(
            box=box, features=_FEATURES, distance_loss="mean", auxiliary_weight=0.0
        ),
        tower=ConvNextConfig(),
        adapter=AdapterConfig() if adapter else None,
        sam=SamUnitConfig() if sam else None,
    )
    if layers is None:
        return config
    vision, tower = config.vision, ConvNextConfig()
    return replace(
        config,
        llama=replace(config.llama, layers=min(layers, config.llama.layers)),
        vision=replace(vision, layers=min(max(layers, 2), vision.layers)),
        tower=replace(tower, depths=tuple(min(layers, depth) for depth in tower.depths)),
    )


def tiny_config() -> WholeConfig:
    """The same parts so small that a test can write them."""
    sizes = dict(num_queries=5, features=_FEATURES, width=32, layers=2, heads=4, mlp_dim=40)
    box = BoxUnitConfig(**sizes)  # type: ignore[arg-type]
    return WholeConfig(
        vision=VisionConfig(image_size=28, patch_size=14, width=64, layers=3, heads=1, mlp_dim=24),
        llama=LlamaConfig(
            vocab_size=45, width=256, layers=2, heads=2, kv_heads=1, head_dim=128, mlp_dim=72
        ),
        region_prompts=replace(released_config().region_prompts, num_patches=4),  # type: ignore[type-var]
        box=box,
        mask=MaskUnitConfig(**sizes),  # type: ignore[arg-type]
        keypoint=KeypointUnitConfig(
            box=box,
            features=_FEATURES,
            width=32,
            layers=1,
            heads=4,
            mlp_dim=40,
            distance_loss="mean",
            auxiliary_weight=0.0,
        ),
        tower=ConvNextConfig(image_size=64, depths=(1, 1, 2, 1), dims=(8, 12, 16, 24)),
    )


def torch_shapes(config: WholeConfig, part: Part) -> dict[str, Shape]:
    """Keys without prefix -> shapes of a part, the tensors that nothing uses included."""
    from functools import partial

    from refvlm_jax.train.model_def import define

    ours = define(partial(part.module, config)).shapes
    start = f"{part.name}."
    found = {
        key.removeprefix(part.prefix): row.torch_shape(ours[row.name.removeprefix(start)])
        for row in table(config, part)
        if row.name.removeprefix(start) in ours
        for key in row.keys
    }
    return found | _unused(config).get(part.name, {})


def _unused(config: WholeConfig) -> Mapping[str, dict[str, Shape]]:
    """Tensors of the released layout that take part in nothing."""
    width, mask, tower = config.vision.width, config.mask, config.tower
    found: dict[str, dict[str, Shape]] = {
        "vision": {f"vision_model.post_layernorm.{n}": (width,) for n in ("weight", "bias")}
    }
    if mask is not None:
        found["mask"] = {"queries_embedder.weight": (mask.num_queries, mask.width)}
    if tower is not None:
        last = tower.dims[-1]
        found["tower"] = {f"visual.trunk.head.norm.{n}": (last,) for n in ("weight", "bias")}
    if config.adapter is not None:
        found["adapter"] = {"output_tokens.weight": (config.adapter.ref_length, config.llama.width)}
    return found


def write_released(
    folder: Path, config: WholeConfig, *, seed: int = 0, shard_bytes: int = 2 * 10**9
) -> int:
    """Writes an export folder with the tower's and CLIP's weights beside; returns its bytes.

    The language model is float16 in shards of `shard_bytes`, as released; everything else float32.
    """
    pool = np.random.default_rng(seed).standard_normal(_POOL, np.float32)
    total = 0
    for part in parts():
        if getattr(config, part.attribute) is None:
            continue
        place = folder / part.folder
        place.mkdir(parents=True, exist_ok=True)
        tree = {"model_type": part.model_types[0], **part.write(config)}
        dtype = DTYPES["F16"] if part.name == "llama" else DTYPES["F32"]
        (place / "config.json").write_text(json.dumps(tree, indent=1), encoding="utf-8")
        if part.name == "tower":
            (place / "open_clip_config.json").write_text("{}", encoding="utf-8")
        shapes = torch_shapes(config, part)
        entries = [Entry(key, shape, dtype) for key, shape in shapes.items()]
        total += _write(place, entries, pool, shard_bytes)
    return total


def _write(folder: Path, entries: list[Entry], pool: np.ndarray, shard_bytes: int) -> int:
    shards: list[list[Entry]] = [[]]
    room = shard_bytes
    for entry in entries:
        if entry.nbytes > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(entry)
        room -= entry.nbytes
    places = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        name = name if len(shards) > 1 else "model.safetensors"
        with SafetensorsWriter(folder / name, shard) as file:
            for entry in shard:
                places[entry.name] = name
                file.write(entry.name, _numbers(pool, entry, len(places)))
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return sum(entry.nbytes for entry in entries)


def _numbers(pool: np.ndarray, entry: Entry, number: int) -> np.ndarray:
    """Numbers that differ from tensor to tensor, without drawing each anew."""
    size = int(np.prod(entry.shape, dtype=np.int64))
    start = number * 7919 % (_POOL // 2)
    repeated = np.resize(pool[start : start + min(size, _POOL - start)], size)
    return repeated.reshape(entry.shape).astype(entry.dtype)
