"""The vision tower as Hugging Face's CLIPVisionModel."""

import math
from collections.abc import Mapping
from typing import Any

from flax import nnx

from refvlm_jax.ckpt.convert.names import Expand, Rows, conv, linear, norm, row, stack
from refvlm_jax.ckpt.convert.part import Fields, Part, TorchConfig, count
from refvlm_jax.ckpt.convert.tensors import ConvertError, Shape
from refvlm_jax.ckpt.convert.whole import WholeConfig
from refvlm_jax.config.model import VisionConfig

_AT = "vision_model"


def rows(config: WholeConfig) -> Rows:
    """The name table; the released name `pre_layrnorm` is spelled like this."""
    return [
        row("class_token", f"{_AT}.embeddings.class_embedding", Expand()),
        row("position", f"{_AT}.embeddings.position_embedding.weight"),
        *conv("patch_embed", f"{_AT}.embeddings.patch_embedding", bias=False),
        *norm("pre_norm", f"{_AT}.pre_layrnorm"),
        *stack("blocks.block", config.vision.layers, lambda i: _layer(f"{_AT}.encoder.layers.{i}")),
    ]


def _layer(key: str) -> Rows:
    found = [*norm("norm1", f"{key}.layer_norm1"), *norm("norm2", f"{key}.layer_norm2")]
    for name in ("q", "k", "v", "out"):
        found += linear(name, f"{key}.self_attn.{name}_proj")
    return [*found, *linear("fc1", f"{key}.mlp.fc1"), *linear("fc2", f"{key}.mlp.fc2")]


def read(config: TorchConfig, root: TorchConfig) -> VisionConfig:
    """From config.json, and the layer the whole model selects."""
    f = Fields("visual_encoder", config)
    f.only("num_channels", 3)
    return VisionConfig(
        image_size=f.get("image_size"),
        patch_size=f.get("patch_size"),
        width=f.get("hidden_size"),
        layers=f.get("num_hidden_layers"),
        heads=f.get("num_attention_heads"),
        mlp_dim=f.get("intermediate_size"),
        feature_layer=Fields("model", root).get("visual_select_layer", -2),
        activation=f.only("hidden_act", "quick_gelu", "gelu"),
        norm_eps=float(f.get("layer_norm_eps", 1e-5, (int, float))),
    )


def write(config: WholeConfig) -> dict[str, Any]:
    """config.json."""
    c = config.vision
    if c.stem != "patch" or not c.class_token or c.position != "learned":
        raise ConvertError(
            "the vision tower of this checkpoint (convolutional stem, no class token or sine "
            "positions) has no PyTorch counterpart; only CLIP towers can be exported"
        )
    return {
        "hidden_size": c.width,
        "intermediate_size": c.mlp_dim,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_channels": 3,
        "image_size": c.image_size,
        "patch_size": c.patch_size,
        "hidden_act": c.activation,
        "layer_norm_eps": c.norm_eps,
    }


def infer(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Sizes from shapes; heads of 64 and quick GELU, as in OpenAI's models."""
    width, _, patch, _ = shapes[f"{_AT}.embeddings.patch_embedding.weight"]
    grid = math.isqrt(shapes[f"{_AT}.embeddings.position_embedding.weight"][0] - 1)
    return {
        "hidden_size": width,
        "intermediate_size": shapes[f"{_AT}.encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": count(shapes, f"{_AT}.encoder.layers."),
        "num_attention_heads": width // 64,
        "image_size": grid * patch,
        "patch_size": patch,
    }


def module(config: WholeConfig, rngs: nnx.Rngs) -> nnx.Module:
    """Constructs the tower."""
    from refvlm_jax.models.clip_vit import ClipViT

    return ClipViT(config.vision, rngs)


PART = Part(
    name="vision",
    field="visual_encoder",
    folder="visual_encoder",
    model_types=("clip_vision_model", "clip"),
    architectures=("CLIPVisionModel",),
    attribute="vision",
    order=10,
    read=read,
    write=write,
    rows=rows,
    infer=infer,
    module=module,
    ignored=(
        "text_model.*",
        "*.position_ids",
        "logit_scale",
        "visual_projection.*",
        "text_projection.*",
    ),
)
