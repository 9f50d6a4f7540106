"""The region-prompt encoder (`vpt_encoder`)."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from flax import nnx

from refvlm_jax.ckpt.convert.names import Rows, conv, linear, row
from refvlm_jax.ckpt.convert.part import Fields, Part, TorchConfig
from refvlm_jax.ckpt.convert.tensors import ConvertError, Shape
from refvlm_jax.ckpt.convert.whole import WholeConfig
from refvlm_jax.config.model import RegionPromptConfig


def rows(config: WholeConfig) -> Rows:
    """The name table."""
    prompts = config.region_prompts
    assert prompts is not None
    token = linear("mask_token", "model.mask_embedding") if prompts.mask_token else []
    if prompts.pooling == "legacy":
        return [*linear("feature", "model.vpt_feats_proj"), *token]
    found = [row("position", "model.position_embedding.weight")]
    if prompts.pooling == "conv":
        found += conv("patch", "model.patch_embedding", bias=False)
    return [*found, *token]


_POOLING: dict[str, Literal["raster", "conv"]] = {"pooling": "raster", "embedding": "conv"}
"""Strategy of the reference -> our pooling."""


def read(config: TorchConfig, root: TorchConfig) -> RegionPromptConfig:
    """From config.json."""
    f = Fields("vpt_encoder", config)
    if f.only("legacy", False, True):
        return RegionPromptConfig(num_patches=1, pooling="legacy", mask_token=True)
    f.only("use_projector", False)
    return RegionPromptConfig(
        num_patches=f.get("num_patches", 9),
        pooling=_POOLING[f.only("strategy", *_POOLING)],
        mask_token=f.get("use_mask_token", False, bool),
    )


def write(config: WholeConfig) -> dict[str, Any]:
    """config.json."""
    prompts = config.region_prompts
    assert prompts is not None
    names: dict[str, str] = {"legacy": "pooling"} | {
        ours: theirs for theirs, ours in _POOLING.items()
    }
    if prompts.pooling not in names:
        raise ConvertError(
            f"region_prompts.pooling = {prompts.pooling!r} has no PyTorch counterpart; expected "
            f"{', '.join(names)}"
        )
    legacy = prompts.pooling == "legacy"
    return {
        "strategy": names[prompts.pooling],
        "num_patches": prompts.num_patches,
        "patch_size": config.vision.grid // max(1, math.isqrt(prompts.num_patches)),
        "use_mask_token": prompts.mask_token,
        "use_projector": legacy,
        "legacy": legacy,
        "visual_hidden_size": config.vision.width,
        "llm_hidden_size": config.llama.width,
        "hidden_act": "gelu",
        "depth": 2,
        "bias": True,
    }


def infer(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Everything from shapes."""
    if "model.vpt_feats_proj.weight" in shapes:
        return {"legacy": True}
    token = "model.mask_embedding.weight" in shapes
    tokens = shapes["model.position_embedding.weight"][0]
    return {
        "num_patches": tokens - int(token),
        "use_mask_token": token,
        "strategy": "embedding" if "model.patch_embedding.weight" in shapes else "pooling",
    }


def module(config: WholeConfig, rngs: nnx.Rngs) -> nnx.Module:
    """Constructs the encoder."""
    from refvlm_jax.models.region_prompts import RegionPromptEncoder

    assert config.region_prompts is not None
    return RegionPromptEncoder(
        config.region_prompts,
        config.vision.width,
        config.vision.grid,
        rngs,
        text_width=config.llama.width,
    )


PART = Part(
    name="region_prompts",
    field="vpt_encoder",
    folder="vpt_encoder",
    model_types=("vpt_encoder",),
    architectures=("VPTEncoderModel",),
    attribute="region_prompts",
    order=20,
    read=read,
    write=write,
    rows=rows,
    infer=infer,
    module=module,
    needs=("vision",),
)
