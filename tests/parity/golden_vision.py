"""PyTorch weights of the vision-side modules under our dotted names (test code)."""

from pathlib import Path

import numpy as np
from golden_weights import Weights, conv, linear, norm, prefixed, stacked

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"


def convnext(w: Weights, depths: list[int]) -> Weights:
    t = "visual_tower.visual.trunk"
    found = conv(w, f"{t}.stem.0", "stem.conv") | norm(w, f"{t}.stem.1", "stem.norm")
    for s, depth in enumerate(depths):
        blocks = []
        for j in range(depth):
            at = f"{t}.stages.{s}.blocks.{j}"
            block = conv(w, f"{at}.conv_dw", "depthwise") | norm(w, f"{at}.norm", "norm")
            block |= linear(w, f"{at}.mlp.fc1", "fc1") | linear(w, f"{at}.mlp.fc2", "fc2")
            blocks.append(block | {"layer_scale": w[f"{at}.gamma"]})
        found |= stacked(blocks, f"stages.{s}.block")
        if s:
            down, ours = f"{t}.stages.{s}.downsample", f"downsamples.{s - 1}"
            found |= norm(w, f"{down}.0", f"{ours}.norm") | conv(w, f"{down}.1", f"{ours}.conv")
    return found


def two_way(w: Weights, key: str, layers: int, name: str) -> Weights:
    parts = {
        "self_attn": "self_attn",
        "to_image": "cross_attn_token_to_image",
        "to_tokens": "cross_attn_image_to_token",
    }
    found = []
    for i in range(layers):
        at, layer = f"{key}.layers.{i}", {}
        for ours, theirs in parts.items():
            layer |= attention(w, f"{at}.{theirs}", ours)
        for k in range(1, 5):
            layer |= norm(w, f"{at}.norm{k}", f"norm{k}")
        found.append(
            layer | linear(w, f"{at}.mlp.lin1", "fc1") | linear(w, f"{at}.mlp.lin2", "fc2")
        )
    return (
        stacked(found, f"{name}.layers.block")
        | attention(w, f"{key}.final_attn_token_to_image", f"{name}.final")
        | norm(w, f"{key}.norm_final_attn", f"{name}.norm")
    )


def attention(w: Weights, key: str, name: str) -> Weights:
    found = {}
    for part in ("q", "k", "v", "out"):
        found |= linear(w, f"{key}.{part}_proj", f"{name}.{part}")
    return found


def adapter(w: Weights, layers: int) -> Weights:
    """All but `output_tokens`, which nothing uses."""
    a = "vd_adapter"
    found = {
        "text_embedding": w[f"{a}.text_embedding.weight"],
        "image_position.fourier": w[f"{a}.pe_image.positional_encoding_gaussian_matrix"],
    }
    for name in ("image", "text"):
        for k in (1, 2):
            found |= linear(w, f"{a}.in_proj_{name}.lin{k}", f"{name}.fc{k}")
    return found | two_way(w, f"{a}.model", layers, "transformer")


def sam_encoder(w: Weights, key: str, layers: int, whole: list[int]) -> Weights:
    blocks = []
    for i in range(layers):
        at = f"{key}.blocks.{i}"
        block = norm(w, f"{at}.norm1", "norm1") | norm(w, f"{at}.norm2", "norm2")
        kernels = np.split(w[f"{at}.attn.qkv.weight"], 3)
        biases = np.split(w[f"{at}.attn.qkv.bias"], 3)
        for kernel, bias, name in zip(kernels, biases, "qkv", strict=True):
            block |= {f"attn.{name}.kernel": kernel.T, f"attn.{name}.bias": bias}
        block |= linear(w, f"{at}.attn.proj", "attn.out")
        block |= {
            "attn.rows": w[f"{at}.attn.rel_pos_h"],
            "attn.columns": w[f"{at}.attn.rel_pos_w"],
        }
        blocks.append(
            block | linear(w, f"{at}.mlp.lin1", "fc1") | linear(w, f"{at}.mlp.lin2", "fc2")
        )
    of = lambda kind: [b for i, b in enumerate(blocks) if (i in whole) == kind]  # noqa: E731
    return (
        {"position": w[f"{key}.pos_embed"][0]}
        | conv(w, f"{key}.patch_embed.proj", "patch_embed")
        | stacked(of(False), "windowed.block")
        | stacked(of(True), "whole.block")
        | conv(w, f"{key}.neck.0", "neck.conv1")
        | norm(w, f"{key}.neck.1", "neck.norm1")
        | conv(w, f"{key}.neck.2", "neck.conv2")
        | norm(w, f"{key}.neck.3", "neck.norm2")
    )


def sam_prompts(w: Weights, key: str) -> Weights:
    found = {
        "position.fourier": w[f"{key}.pe_layer.positional_encoding_gaussian_matrix"],
        "kinds": np.concatenate([w[f"{key}.point_embeddings.{k}.weight"] for k in range(4)]),
        "no_point": w[f"{key}.not_a_point_embed.weight"],
        "no_mask": w[f"{key}.no_mask_embed.weight"],
    }
    down = f"{key}.mask_downscaling"
    for index, name in ((0, "conv1"), (3, "conv2"), (6, "out")):
        found |= conv(w, f"{down}.{index}", f"masks.{name}")
    return found | norm(w, f"{down}.1", "masks.norm1") | norm(w, f"{down}.4", "masks.norm2")


def upscale(w: Weights, key: str, name: str) -> Weights:
    """A transposed convolution is stored [in, out, 2, 2]."""
    kernel = w[f"{key}.weight"].transpose(2, 3, 0, 1)
    return {f"{name}.kernel": kernel, f"{name}.bias": w[f"{key}.bias"]}


def sam_decoder(w: Weights, key: str, layers: int, masks: int) -> Weights:
    found = {
        "iou_token": w[f"{key}.iou_token.weight"],
        "mask_tokens": w[f"{key}.mask_tokens.weight"],
    }
    found |= two_way(w, f"{key}.transformer", layers, "transformer")
    found |= upscale(w, f"{key}.output_upscaling.0", "pixels.up1")
    found |= norm(w, f"{key}.output_upscaling.1", "pixels.norm")
    found |= upscale(w, f"{key}.output_upscaling.3", "pixels.up2")
    for i in range(3):
        found |= linear(w, f"{key}.iou_prediction_head.layers.{i}", f"iou.layers.{i}")
        for k in range(masks):
            at = f"{key}.output_hypernetworks_mlps.{k}.layers.{i}"
            found |= linear(w, at, f"hyper.{k}.layers.{i}")
    return found


def sam(w: Weights, config: dict) -> Weights:
    """The whole unit of a bundle."""
    m, c = "visual_decoder.mask", config["sam"]
    encoder = sam_encoder(w, f"{m}.sam.image_encoder", c["depth"], c["global_attn_indexes"])
    decoder = sam_decoder(
        w, f"{m}.sam.mask_decoder", c["decoder_depth"], c["num_multimask_outputs"] + 1
    )
    return (
        prefixed("encoder", encoder)
        | prefixed("prompts", sam_prompts(w, f"{m}.sam.prompt_encoder"))
        | prefixed("decoder", decoder)
        | linear(w, f"{m}.in_proj_queries.0", "query.layers.0")
        | linear(w, f"{m}.in_proj_queries.2", "query.layers.1")
    )
