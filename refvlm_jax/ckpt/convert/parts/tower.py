"""The visual tower: the trunk of open_clip's ConvNeXt (timm names)."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from flax import nnx

from refvlm_jax.ckpt.convert.names import Rows, conv, linear, norm, row, stack
from refvlm_jax.ckpt.convert.part import Fields, Part, TorchConfig, count
from refvlm_jax.ckpt.convert.tensors import Shape
from refvlm_jax.ckpt.convert.whole import WholeConfig
from refvlm_jax.config.model import ConvNextConfig

_AT = "visual.trunk"


def rows(config: WholeConfig) -> Rows:
    """The name table."""
    c = config.tower
    assert c is not None
    found = [*conv("stem.conv", f"{_AT}.stem.0"), *norm("stem.norm", f"{_AT}.stem.1")]
    for s, depth in enumerate(c.depths):
        if s:
            down, ours = f"{_AT}.stages.{s}.downsample", f"downsamples.{s - 1}"
            found += [*norm(f"{ours}.norm", f"{down}.0"), *conv(f"{ours}.conv", f"{down}.1")]
        found += stack(f"stages.{s}.block", depth, partial(_block, f"{_AT}.stages.{s}.blocks"))
    return found


def _block(blocks: str, index: int) -> Rows:
    key = f"{blocks}.{index}"
    return [
        *conv("depthwise", f"{key}.conv_dw"),
        *norm("norm", f"{key}.norm"),
        *linear("fc1", f"{key}.mlp.fc1"),
        *linear("fc2", f"{key}.mlp.fc2"),
        row("layer_scale", f"{key}.gamma"),
    ]


def module(config: WholeConfig, rngs: nnx.Rngs) -> nnx.Module:
    """Constructs the tower."""
    from refvlm_jax.models.convnext import ConvNext

    assert config.tower is not None
    return ConvNext(config.tower, rngs)


def read(config: TorchConfig, root: TorchConfig) -> ConvNextConfig:
    """From the sizes that shapes tell and the size of the pictures it is given."""
    f = Fields("visual_tower", config)
    return ConvNextConfig(
        image_size=f.get("image_size", 512),
        depths=tuple(f.get("depths", kind=(list, tuple))),
        dims=tuple(f.get("dims", kind=(list, tuple))),
    )


def write(config: WholeConfig) -> dict[str, Any]:
    """Sizes under the names that `read` takes."""
    c = config.tower
    assert c is not None
    vision = {"timm_model_name": "convnext", "image_size": c.image_size}
    return {
        "depths": list(c.depths),
        "dims": list(c.dims),
        "image_size": c.image_size,
        "model_cfg": {"vision_cfg": vision},
    }


def infer(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Everything but the size of the pictures, which released models take at 512."""
    stages = [f"{_AT}.stages.{s}.blocks." for s in range(count(shapes, f"{_AT}.stages."))]
    return {
        "depths": [count(shapes, stage) for stage in stages],
        "dims": [shapes[f"{stage}0.gamma"][0] for stage in stages],
    }


PART = Part(
    name="tower",
    field="visual_tower",
    folder="visual_tower",
    model_types=("convnext_tower",),
    architectures=("CLIPConvNextVisionEncoder",),
    attribute="tower",
    order=15,
    read=read,
    write=write,
    rows=rows,
    module=module,
    infer=infer,
    sizes_from_weights=True,
    # The text half of open_clip's model.
    ignored=(
        "transformer.*",
        "text.*",
        "token_embedding.*",
        "positional_embedding",
        "ln_final.*",
        "text_projection",
        "logit_scale",
        "logit_bias",
        "attn_mask",
    ),
)
