"""From the tensor names of released weights to those of the transformers classes that run them."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

Weights = Mapping[str, np.ndarray]
"""fp32 tensors by name."""
Names = Sequence[tuple[str, str]]
"""Patterns and what stands in their place, applied one after the other."""


def renamed(weights: Weights, names: Names) -> Weights:
    """The same tensors under the other names."""
    found = {}
    for key, value in weights.items():
        for pattern, theirs in names:
            key = re.sub(pattern, theirs, key)
        found[key] = value
    return found


TOWER: Names = (  # timm's
    (r"^stem\.0", "embeddings.patch_embeddings"),
    (r"^stem\.1", "embeddings.layernorm"),
    (r"^stages", "encoder.stages"),
    (r"downsample\.", "downsampling_layer."),
    (r"blocks\.(\d+)\.", r"layers.\1."),
    (r"conv_dw", "dwconv"),
    (r"\.norm\.", ".layernorm."),
    (r"mlp\.fc", "pwconv"),
    (r"gamma$", "layer_scale_parameter"),
)
DETR: Names = ((r"out_proj", "o_proj"), (r"\.fc", ".mlp.fc"))
SAM: Names = (  # of SAM's own release
    (r"^image_encoder\.", "vision_encoder."),
    (r"patch_embed\.proj", "patch_embed.projection"),
    (r"blocks\.(\d+)\.norm", r"layers.\1.layer_norm"),
    (r"blocks\.", "layers."),
    (r"neck\.0", "neck.conv1"),
    (r"neck\.1", "neck.layer_norm1"),
    (r"neck\.2", "neck.conv2"),
    (r"neck\.3", "neck.layer_norm2"),
    (r"^prompt_encoder\.pe_layer\.", "shared_image_embedding."),
    (r"positional_encoding_gaussian_matrix$", "positional_embedding"),
    (r"point_embeddings", "point_embed"),
    (r"mask_downscaling\.0", "mask_embed.conv1"),
    (r"mask_downscaling\.1", "mask_embed.layer_norm1"),
    (r"mask_downscaling\.3", "mask_embed.conv2"),
    (r"mask_downscaling\.4", "mask_embed.layer_norm2"),
    (r"mask_downscaling\.6", "mask_embed.conv3"),
    (r"norm_final_attn", "layer_norm_final_attn"),
    (r"transformer\.layers\.(\d+)\.norm", r"transformer.layers.\1.layer_norm"),
    (r"output_upscaling\.0", "upscale_conv1"),
    (r"output_upscaling\.1", "upscale_layer_norm"),
    (r"output_upscaling\.3", "upscale_conv2"),
    (r"(mlps\.\d+|head)\.layers\.0", r"\1.proj_in"),
    (r"(mlps\.\d+|head)\.layers\.1", r"\1.layers.0"),
    (r"(mlps\.\d+|head)\.layers\.2", r"\1.proj_out"),
)
