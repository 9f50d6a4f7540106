"""The box decoder."""

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
from refvlm_jax.ckpt.convert.names import Rows, linear, row
from refvlm_jax.ckpt.convert.part import Fields, Part, TorchConfig, count
from refvlm_jax.ckpt.convert.tensors import Shape
from refvlm_jax.ckpt.convert.whole import WholeConfig
from refvlm_jax.config.model import BoxUnitConfig


def rows(config: WholeConfig) -> Rows:
    """The name table."""
    assert config.box is not None
    return box_rows(config.box.layers)


def box_rows(layers: int) -> Rows:
    """The same, for a decoder anywhere."""
    return [
        *linear("memory", "in_proj_visual_feats"),
        *linear("query", "in_proj_queries"),
        row("query_position", "query_position_embeddings.weight"),
        *detr_rows("decoder", "decoder", layers),
        *(r for i in range(3) for r in linear(f"head.layers.{i}", f"predictor.layers.{i}")),
    ]


def read(config: TorchConfig, root: TorchConfig) -> BoxUnitConfig:
    """From config.json, with the released defaults for what it leaves out."""
    return read_box("visual_decoder.box", config, root)


def read_box(where: str, config: TorchConfig, root: TorchConfig) -> BoxUnitConfig:
    """The same, of a decoder anywhere."""
    f = Fields(where, config)
    f.only("encoder_input_transform", "resize_concat")
    return BoxUnitConfig(
        num_queries=f.get("num_queries", 100),
        bbox_weight=float(f.get("bbox_loss_coefficient", 5, (int, float))),
        giou_weight=float(f.get("giou_loss_coefficient", 2, (int, float))),
        group_matching=f.get("use_group_matcher", True, bool),
        empty_queries=empty_queries(root),
        **detr_fields(f, default_features=(0, 1, 2, 3), dropout=0.1),
    )


def write(config: WholeConfig) -> dict[str, Any]:
    """config.json; `quries_input_dim` is spelled like this in the released code."""
    assert config.box is not None
    return write_box(config.box, config, "box")


def write_box(c: BoxUnitConfig, config: WholeConfig, name: str) -> dict[str, Any]:
    """The same, of a decoder anywhere."""
    return {
        **write_detr(c, config, name),
        "encoder_input_transform": "resize_concat",
        "bbox_loss_coefficient": c.bbox_weight,
        "giou_loss_coefficient": c.giou_weight,
        "use_group_matcher": c.group_matching,
        "auxiliary_loss": False,
    }


def infer(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Sizes from shapes; eight heads and the feature maps of released models."""
    width, channels = shapes["in_proj_visual_feats.weight"]
    queries = shapes["in_proj_queries.weight"][1]
    return {
        "num_queries": shapes["query_position_embeddings.weight"][0],
        "quries_input_dim": queries,
        "d_model": width,
        "decoder_layers": count(shapes, "decoder.layers."),
        "decoder_ffn_dim": shapes["decoder.layers.0.fc1.weight"][0],
        **feature_index("visual_decoder.box", {2368: (0, 1, 2, 4), 3072: (8, 16, 23)}, channels),
    }


def module(config: WholeConfig, rngs: nnx.Rngs) -> nnx.Module:
    """Constructs the decoder."""
    from refvlm_jax.models.units.box import BoxUnit

    assert config.box is not None
    return BoxUnit(config.box, config.unit_dims, config.query_width, rngs)


PART = Part(
    name="box",
    field="visual_decoder.box",
    folder="box_decoder",
    model_types=("box_decoder",),
    architectures=("BoxDecoderModel",),
    attribute="box",
    order=50,
    read=read,
    write=write,
    rows=rows,
    infer=infer,
    module=module,
    needs=("vision", "llama"),
)
