"""The region-prompt encoder (`vpt_encoder`, pooling strategy)."""

from collections.abc import Mapping
from typing import Any

from refvlm_jax.ckpt.convert.names import Rows, linear, row
from refvlm_jax.ckpt.convert.part import Fields, Part, TorchConfig
from refvlm_jax.ckpt.convert.passes import prompt_pass
from refvlm_jax.ckpt.convert.tensors import ConvertError, Shape
from refvlm_jax.config.model import RefVLMConfig, RegionPromptConfig


def rows(config: RefVLMConfig) -> Rows:
    """The name table."""
    prompts = config.region_prompts
    token = prompts is not None and prompts.mask_token
    found = [row("position", "model.position_embedding.weight")]
    return [*found, *(linear("mask_token", "model.mask_embedding") if token else [])]


def read(config: TorchConfig, root: TorchConfig) -> RegionPromptConfig:
    """From config.json."""
    f = Fields("vpt_encoder", config)
    f.only("strategy", "pooling")
    f.only("use_projector", False)
    f.only("legacy", False)
    return RegionPromptConfig(
        num_patches=f.get("num_patches", 9),
        mask_token=f.get("use_mask_token", False, bool),
    )


def write(config: RefVLMConfig) -> dict[str, Any]:
    """config.json."""
    prompts = config.region_prompts
    assert prompts is not None
    if prompts.pooling != "raster":
        raise ConvertError(
            f"region_prompts.pooling = {prompts.pooling!r} has no PyTorch counterpart; only "
            "'raster' pooling can be exported"
        )
    return {
        "strategy": "pooling",
        "num_patches": prompts.num_patches,
        "use_mask_token": prompts.mask_token,
        "use_projector": False,
        "legacy": False,
        "visual_hidden_size": config.vision.width,
        "llm_hidden_size": config.llama.width,
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
    run=prompt_pass,
    needs=("vision",),
)
