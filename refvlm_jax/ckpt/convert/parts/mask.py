"""The mask decoder (MaskFormer variant)."""

from collections.abc import Mapping
from typing import Any

from flax import nnx

from refvlm_jax.ckpt.convert.detr import (
    detr_fields,
    detr_rows,
    empty_queries,
    feature_index,
    write_detr,
)
from refvlm_jax.ckpt.convert.names import CONV1X1, Rows, conv, linear, norm, row
from refvlm_jax.ckpt.convert.part import Fields, Part, TorchConfig, count
from refvlm_jax.ckpt.convert.tensors import ConvertError, Shape
from refvlm_jax.ckpt.convert.whole import WholeConfig
from refvlm_jax.config.model import MaskUnitConfig


def rows(config: WholeConfig) -> Rows:
    """The name table."""
    c = config.mask
    assert c is not None
    fpn = "pixel_decoder.fpn"
    found = [
        *conv("pixel_decoder.stem.conv", f"{fpn}.stem.0", bias=False),
        *norm("pixel_decoder.stem.norm", f"{fpn}.stem.1"),
    ]
    for k in range(len(c.features) - 1):
        for ours, theirs in ((f"laterals.{k}", "proj"), (f"blocks.{k}", "block")):
            key = f"{fpn}.layers.{k}.{theirs}"
            found += conv(f"pixel_decoder.{ours}.conv", f"{key}.0", bias=False)
            found += norm(f"pixel_decoder.{ours}.norm", f"{key}.1")
    return [
        *found,
        *conv("pixel_decoder.projection", "pixel_decoder.mask_projection"),
        # Absent where the coarsest map already has the decoder's width.
        row("memory.kernel", "in_proj_visual_feats.weight", CONV1X1, optional=True),
        row("memory.bias", "in_proj_visual_feats.bias", optional=True),
        *linear("query", "in_proj_queries"),
        row("query_position", "query_position_embeddings.weight"),
        *detr_rows("decoder", "query_decoder", c.layers),
        *(r for i in range(3) for r in linear(f"head.layers.{i}", f"mask_embedder.{i}.0")),
    ]


def read(config: TorchConfig, root: TorchConfig) -> MaskUnitConfig:
    """From config.json, with the released defaults for what it leaves out."""
    f = Fields("visual_decoder.mask", config)
    f.only("encoder_input_transform", "multiple_select")
    fields = detr_fields(f, default_features=(3, 2, 1), dropout=0.0)
    for name in ("fpn_feature_size", "mask_feature_size"):
        if f.get(name, fields["width"]) != fields["width"]:
            raise ConvertError(
                f"visual_decoder.mask: {name} = {config[name]} differs from d_model = "
                f"{fields['width']}, which is not supported"
            )
    return MaskUnitConfig(
        num_queries=f.get("num_queries", 30),
        focal_weight=float(f.get("mask_loss_coefficient", 20, (int, float))),
        dice_weight=float(f.get("dice_loss_coefficient", 1, (int, float))),
        group_matching=f.get("use_group_matcher", True, bool),
        empty_queries=empty_queries(root),
        **fields,
    )


def write(config: WholeConfig) -> dict[str, Any]:
    """config.json."""
    c = config.mask
    assert c is not None
    if c.norm_groups != 32:
        raise ConvertError(
            f"mask.norm_groups = {c.norm_groups} has no PyTorch counterpart, which always uses 32"
        )
    return {
        **write_detr(c, config, "mask"),
        "encoder_input_transform": "multiple_select",
        "use_group_matcher": c.group_matching,
        "fpn_feature_size": c.width,
        "mask_feature_size": c.width,
        "mask_loss_coefficient": c.focal_weight,
        "dice_loss_coefficient": c.dice_weight,
    }


def infer(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Sizes from shapes; eight heads and the feature maps of released models."""
    fpn = "pixel_decoder.fpn"
    coarse = shapes[f"{fpn}.stem.0.weight"][1]
    laterals = count(shapes, f"{fpn}.layers.")
    dims = (*(shapes[f"{fpn}.layers.{k}.proj.0.weight"][1] for k in range(laterals)), coarse)
    known = {(768, 384, 192, 1024): (0, 1, 2, 4), (1024, 1024, 1024): (8, 16, 23)}
    return {
        "num_queries": shapes["query_position_embeddings.weight"][0],
        "quries_input_dim": shapes["in_proj_queries.weight"][1],
        "d_model": shapes["in_proj_queries.weight"][0],
        "fpn_feature_size": shapes["in_proj_queries.weight"][0],
        "mask_feature_size": shapes["in_proj_queries.weight"][0],
        "decoder_layers": count(shapes, "query_decoder.layers."),
        "decoder_ffn_dim": shapes["query_decoder.layers.0.fc1.weight"][0],
        **feature_index("visual_decoder.mask", known, dims),
    }


def module(config: WholeConfig, rngs: nnx.Rngs) -> nnx.Module:
    """Constructs the decoder."""
    from refvlm_jax.models.units.mask import MaskUnit

    assert config.mask is not None
    return MaskUnit(config.mask, config.unit_dims, config.query_width, rngs)


PART = Part(
    name="mask",
    field="visual_decoder.mask",
    folder="mask_decoder",
    model_types=("mask_decoder",),
    architectures=("MaskDecoderModel",),
    attribute="mask",
    order=60,
    read=read,
    write=write,
    rows=rows,
    infer=infer,
    module=module,
    needs=("vision", "llama"),
)
