"""The keypoint decoder (`pose`): a box decoder and a second decoder with one query a body point."""

from collections.abc import Mapping
from typing import Any

from flax import nnx

from refvlm_jax.ckpt.convert.detr import detr_fields, detr_rows, write_detr
from refvlm_jax.ckpt.convert.names import Rows, linear, prefixed, row
from refvlm_jax.ckpt.convert.part import Fields, Part, TorchConfig
from refvlm_jax.ckpt.convert.parts import box
from refvlm_jax.ckpt.convert.tensors import ConvertError, Shape
from refvlm_jax.ckpt.convert.whole import WholeConfig
from refvlm_jax.config.model import COCO_SIGMAS, KeypointUnitConfig

CROWD_POSE_SIGMAS = (
    0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089, 0.079, 0.079
)  # fmt: skip
_SIGMAS = {len(sigmas): sigmas for sigmas in (COCO_SIGMAS, CROWD_POSE_SIGMAS)}
_WHERE = "visual_decoder.pose"


def rows(config: WholeConfig) -> Rows:
    """The name table."""
    c = config.keypoint
    assert c is not None
    at = "kpt_decoder"
    return [
        *prefixed(box.box_rows(c.box.layers), "box.", "box_decoder."),
        *linear("memory", f"{at}.in_proj_visual_feats"),
        *linear("query", f"{at}.in_proj_queries"),
        row("part", f"{at}.kpt_embedding.weight"),
        row("query_position", f"{at}.query_position_embeddings.weight"),
        *detr_rows("decoder", f"{at}.decoder", c.layers),
        *_head("box_head", f"{at}.box_predictor"),
        *_head("point_head", f"{at}.kpt_predictor"),
        *linear("visibility_head", f"{at}.kpt_classifier"),
    ]


def _head(name: str, key: str) -> Rows:
    return [r for i in range(3) for r in linear(f"{name}.layers.{i}", f"{key}.layers.{i}")]


def module(config: WholeConfig, rngs: nnx.Rngs) -> nnx.Module:
    """Constructs the decoder."""
    from refvlm_jax.models.units.keypoint import KeypointUnit

    assert config.keypoint is not None
    return KeypointUnit(config.keypoint, config.unit_dims, config.query_width, rngs)


def read(config: TorchConfig, root: TorchConfig) -> KeypointUnitConfig:
    """From config.json: what stands at its top holds for both decoders unless they say otherwise."""
    shared = {"num_queries": 20, "encoder_input_index": [0, 1, 2, 3], **config}
    names = ("num_queries", "encoder_input_transform", "encoder_input_index", "encoder_input_dim")
    shared = {name: shared[name] for name in names if name in shared}
    matcher = {"use_group_matcher": config.get("use_group_matcher", True)}
    own = {**shared, **(config.get("keypoint_config") or {})}
    first = {**shared, **matcher, **(config.get("box_config") or {})}
    f, top = Fields(f"{_WHERE}.keypoint_config", own), Fields(_WHERE, config)
    f.only("encoder_input_transform", "resize_concat")
    points = f.get("num_body_points", 17)
    if points not in _SIGMAS:
        raise ConvertError(
            f"{_WHERE}: num_body_points = {points} is not supported; expected "
            + " or ".join(map(str, _SIGMAS))
        )
    # The reference reads one name and documents another; where both stand, the one it reads counts.
    auxiliary = top.get("use_auxiliary_loss", config.get("auxiliary_loss", True), bool)
    factor = float(top.get("aux_loss_coefficient", 0.5, (int, float)))
    return KeypointUnitConfig(
        box=box.read_box(f"{_WHERE}.box_config", first, root),
        sigmas=_SIGMAS[points],
        distance_loss="mean",
        keypoint_weight=float(f.get("keypoint_loss_coefficient", 2, (int, float))),
        distance_weight=float(f.get("oks_loss_coefficient", 2, (int, float))),
        visibility_weight=float(f.get("cls_loss_coefficient", 1, (int, float))),
        auxiliary_weight=factor if auxiliary else 0.0,
        **detr_fields(f, default_features=(0, 1, 2, 3), dropout=0.1),
    )


def write(config: WholeConfig) -> dict[str, Any]:
    """config.json, with the nested fields written out."""
    c = config.keypoint
    assert c is not None
    first = box.write_box(c.box, config, "keypoint.box")
    names = ("num_queries", "encoder_input_transform", "encoder_input_index", "encoder_input_dim")
    own = {
        **write_detr(c, config, "keypoint", query_dim=c.box.width),
        "encoder_input_transform": "resize_concat",
        "num_body_points": c.points,
        "keypoint_loss_coefficient": c.keypoint_weight,
        "oks_loss_coefficient": c.distance_weight,
        "cls_loss_coefficient": c.visibility_weight,
    }
    return {
        **{name: first[name] for name in names},
        "use_group_matcher": c.box.group_matching,
        "auxiliary_loss": c.auxiliary_weight > 0,
        "use_auxiliary_loss": c.auxiliary_weight > 0,
        "aux_loss_coefficient": c.auxiliary_weight or 0.5,
        "box_config": first,
        "keypoint_config": own,
    }


def infer(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Sizes from shapes; eight heads and the feature maps of released models."""
    start = "box_decoder."
    first = box.infer({k.removeprefix(start): s for k, s in shapes.items() if k.startswith(start)})
    start = "kpt_decoder."
    own = {k.removeprefix(start): s for k, s in shapes.items() if k.startswith(start)}
    points = own["kpt_embedding.weight"][0] - 1
    as_box = {**own, "query_position_embeddings.weight": (first["num_queries"],)}
    second = {**box.infer(as_box), "num_body_points": points}
    names = ("num_queries", "encoder_input_index")
    top = {name: first[name] for name in names}
    # The keypoint recipe that was released trains without the auxiliary loss.
    return {**top, "use_auxiliary_loss": False, "box_config": first, "keypoint_config": second}


PART = Part(
    name="keypoint",
    field=_WHERE,
    folder="pose_decoder",
    model_types=("pose_decoder",),
    architectures=("PoseDecoderModel",),
    attribute="keypoint",
    order=70,
    read=read,
    write=write,
    rows=rows,
    module=module,
    infer=infer,
    needs=("vision", "llama"),
)
