"""Segment Anything as a mask decoder: SAM's own names, and the map of the queries.

Released runs keep it under the prefix of the mask decoder; SAM's own file holds all but that map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from flax import nnx

from refvlm_jax.ckpt.convert.names import (
    MATRIX,
    Row,
    Rows,
    Squeeze,
    Transpose,
    conv,
    linear,
    norm,
    prefixed,
    row,
    stack,
)
from refvlm_jax.ckpt.convert.part import Fields, Part, TorchConfig, count
from refvlm_jax.ckpt.convert.parts.adapter import two_way_rows
from refvlm_jax.ckpt.convert.tensors import ConvertError, Shape
from refvlm_jax.ckpt.convert.whole import WholeConfig
from refvlm_jax.config.model import SamEncoderConfig, SamUnitConfig

_UPSCALE = Transpose((2, 3, 0, 1))
"""ConvTranspose2d: [in, out, 2, 2] -> [2, 2, in, out]."""
_ENCODER = "sam.image_encoder"


def rows(config: WholeConfig) -> Rows:
    """The name table."""
    c = config.sam
    assert c is not None
    query = [r for i in range(2) for r in linear(f"query.layers.{i}", f"in_proj_queries.{2 * i}")]
    return [
        *(replace(r, optional=True) for r in query),
        *prefixed(_encoder(c.encoder), "encoder.", f"{_ENCODER}."),
        *prefixed(_prompts(), "prompts.", "sam.prompt_encoder."),
        *prefixed(_decoder(c), "decoder.", "sam.mask_decoder."),
    ]


def _encoder(c: SamEncoderConfig) -> Rows:
    whole = [i for i in range(c.layers) if i in c.global_layers]
    windowed = [i for i in range(c.layers) if i not in c.global_layers]
    found = [*conv("patch_embed", "patch_embed.proj"), row("position", "pos_embed", Squeeze((0,)))]
    for name, layers in (("windowed", windowed), ("whole", whole)):
        if layers:
            keys = [f"blocks.{i}" for i in layers]
            found += stack(f"{name}.block", len(keys), partial(_nth_block, keys))
    for k in (1, 2):
        found += conv(f"neck.conv{k}", f"neck.{2 * k - 2}", bias=False)
        found += norm(f"neck.norm{k}", f"neck.{2 * k - 1}")
    return found


def _nth_block(keys: Sequence[str], index: int) -> Rows:
    return _block(keys[index])


def _block(key: str) -> Rows:
    found = [*norm("norm1", f"{key}.norm1"), *norm("norm2", f"{key}.norm2")]
    for index, name in enumerate(("q", "k", "v")):
        found += [
            Row(f"attn.{name}.kernel", (f"{key}.attn.qkv.weight",), MATRIX, share=(index, 3)),
            Row(f"attn.{name}.bias", (f"{key}.attn.qkv.bias",), share=(index, 3)),
        ]
    return [
        *found,
        *linear("attn.out", f"{key}.attn.proj"),
        row("attn.rows", f"{key}.attn.rel_pos_h"),
        row("attn.columns", f"{key}.attn.rel_pos_w"),
        *linear("fc1", f"{key}.mlp.lin1"),
        *linear("fc2", f"{key}.mlp.lin2"),
    ]


def _prompts() -> Rows:
    kinds = tuple(f"point_embeddings.{k}.weight" for k in range(4))
    down = "mask_downscaling"
    return [
        row("position.fourier", "pe_layer.positional_encoding_gaussian_matrix"),
        Row("kinds", kinds, Squeeze((0,)), stacked=True),
        row("no_point", "not_a_point_embed.weight"),
        row("no_mask", "no_mask_embed.weight"),
        *conv("masks.conv1", f"{down}.0"),
        *norm("masks.norm1", f"{down}.1"),
        *conv("masks.conv2", f"{down}.3"),
        *norm("masks.norm2", f"{down}.4"),
        *conv("masks.out", f"{down}.6"),
    ]


def _decoder(c: SamUnitConfig) -> Rows:
    up = "output_upscaling"
    found = [
        row("iou_token", "iou_token.weight"),
        row("mask_tokens", "mask_tokens.weight"),
        *two_way_rows("transformer", "transformer", c.layers),
        *linear("pixels.up1", f"{up}.0", kernel=_UPSCALE),
        *norm("pixels.norm", f"{up}.1"),
        *linear("pixels.up2", f"{up}.3", kernel=_UPSCALE),
    ]
    for i in range(3):
        found += linear(f"iou.layers.{i}", f"iou_prediction_head.layers.{i}")
        for k in range(c.mask_tokens):
            key = f"output_hypernetworks_mlps.{k}.layers.{i}"
            found += linear(f"hyper.{k}.layers.{i}", key)
    return found


def module(config: WholeConfig, rngs: nnx.Rngs) -> nnx.Module:
    """Constructs the unit."""
    from refvlm_jax.models.units.sam import SamUnit

    assert config.sam is not None
    return SamUnit(config.sam, config.query_width, rngs)


def read(config: TorchConfig, root: TorchConfig) -> SamUnitConfig:
    """From the decoder's fields and the sizes under `sam`, which shapes tell where they are absent."""
    where = "visual_decoder.mask"
    f, s = Fields(where, config), Fields(f"{where}.sam", config.get("sam") or {})
    width, queries = s.get("embed_dim"), f.get("num_queries", 100)
    encoder = SamEncoderConfig(
        image_size=s.get("image_size", 1024),
        patch_size=s.get("patch_size", 16),
        width=width,
        layers=s.get("depth"),
        heads=s.get("num_heads"),
        mlp_dim=s.get("mlp_dim", 4 * width),
        global_layers=tuple(s.get("global_attn_indexes", kind=(list, tuple))),
        window=s.get("window_size", 14),
        out_width=s.get("out_chans", 256),
    )
    return SamUnitConfig(
        num_queries=queries,
        encoder=encoder,
        layers=s.get("decoder_depth", 2),
        heads=s.get("decoder_heads", 8),
        mlp_dim=s.get("decoder_mlp_dim", 2048),
        mask_tokens=s.get("num_multimask_outputs", 3) + 1,
        iou_hidden=s.get("iou_head_hidden_dim", 256),
        mask_prompt_channels=s.get("mask_in_chans", 16),
        chunk=max(n for n in range(1, 11) if queries % n == 0),
        group_matching=f.get("use_group_matcher", True, bool),
        focal_weight=float(f.get("mask_loss_coefficient", 20, (int, float))),
        dice_weight=float(f.get("dice_loss_coefficient", 1, (int, float))),
    )


def write(config: WholeConfig) -> dict[str, Any]:
    """config.json: the mask decoder's fields, and the sizes that the reference looks up by name."""
    c = config.sam
    assert c is not None
    e = c.encoder
    sizes = {
        "image_size": e.image_size,
        "patch_size": e.patch_size,
        "embed_dim": e.width,
        "depth": e.layers,
        "num_heads": e.heads,
        "mlp_dim": e.mlp_dim,
        "global_attn_indexes": list(e.global_layers),
        "window_size": e.window,
        "out_chans": e.out_width,
        "decoder_depth": c.layers,
        "decoder_heads": c.heads,
        "decoder_mlp_dim": c.mlp_dim,
        "num_multimask_outputs": c.mask_tokens - 1,
        "iou_head_hidden_dim": c.iou_hidden,
        "mask_in_chans": c.mask_prompt_channels,
    }
    return {
        "num_queries": c.num_queries,
        "quries_input_dim": config.query_width,
        "d_model": e.out_width,
        "use_group_matcher": c.group_matching,
        "mask_loss_coefficient": c.focal_weight,
        "dice_loss_coefficient": c.dice_weight,
        "sam": sizes,
    }


def infer(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Everything but the number of queries and the heads of the mask decoder."""
    blocks, decoder = f"{_ENCODER}.blocks.", "sam.mask_decoder"
    _, grid, _, width = shapes[f"{_ENCODER}.pos_embed"]
    patch = shapes[f"{_ENCODER}.patch_embed.proj.weight"][2]
    tables = [shapes[f"{blocks}{i}.attn.rel_pos_h"] for i in range(count(shapes, blocks))]
    whole = [i for i, shape in enumerate(tables) if shape[0] == 2 * grid - 1]
    sides = {(shape[0] + 1) // 2 for i, shape in enumerate(tables) if i not in whole}
    if len(sides) > 1:
        raise ConvertError(f"SAM's windows have sides {sorted(sides)}; they must be equal")
    found = {
        "image_size": grid * patch,
        "patch_size": patch,
        "embed_dim": width,
        "depth": len(tables),
        "num_heads": width // tables[0][1],
        "mlp_dim": shapes[f"{blocks}0.mlp.lin1.weight"][0],
        "global_attn_indexes": whole,
        "window_size": min(sides, default=14),
        "out_chans": shapes[f"{_ENCODER}.neck.0.weight"][0],
        "decoder_depth": count(shapes, f"{decoder}.transformer.layers."),
        "decoder_mlp_dim": shapes[f"{decoder}.transformer.layers.0.mlp.lin1.weight"][0],
        "num_multimask_outputs": shapes[f"{decoder}.mask_tokens.weight"][0] - 1,
        "iou_head_hidden_dim": shapes[f"{decoder}.iou_prediction_head.layers.0.weight"][0],
        "mask_in_chans": shapes["sam.prompt_encoder.mask_downscaling.3.weight"][0],
    }
    return {"sam": found}


PART = Part(
    name="sam",
    field="visual_decoder.mask",
    folder="sam_mask_decoder",
    model_types=("sam_mask_decoder",),
    architectures=("SAMPlug",),
    attribute="sam",
    order=65,
    read=read,
    write=write,
    rows=rows,
    module=module,
    infer=infer,
    sizes_from_weights=True,
    ignored=("sam.pixel_mean", "sam.pixel_std"),
    needs=("llama",),
    inner=("sam.", "in_proj_queries.0.", "in_proj_queries.2."),
)
