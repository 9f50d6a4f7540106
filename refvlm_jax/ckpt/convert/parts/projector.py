"""The projector."""

from collections.abc import Mapping
from typing import Any

from flax import nnx

from refvlm_jax.ckpt.convert.names import Rows, linear
from refvlm_jax.ckpt.convert.part import Fields, Part, TorchConfig, count
from refvlm_jax.ckpt.convert.tensors import Shape
from refvlm_jax.ckpt.convert.whole import WholeConfig


def rows(config: WholeConfig) -> Rows:
    """The name table: activations take the odd places of PyTorch's list."""
    depth = config.projector_depth
    return [r for i in range(depth) for r in linear(f"layers.{i}", f"model.{2 * i}")]


def read(config: TorchConfig, root: TorchConfig) -> int:
    """Its depth; the widths are those of its neighbours."""
    f = Fields("projector", config)
    f.only("hidden_act", "gelu")
    f.only("bias", True)
    return f.get("depth", 2)


def write(config: WholeConfig) -> dict[str, Any]:
    """config.json."""
    return {
        "visual_hidden_size": config.vision.width,
        "llm_hidden_size": config.llama.width,
        "depth": config.projector_depth,
        "hidden_act": "gelu",
        "bias": True,
    }


def infer(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Everything from shapes."""
    out, inner = shapes["model.0.weight"]
    return {
        "visual_hidden_size": inner,
        "llm_hidden_size": out,
        "depth": count(shapes, "model."),
    }


def module(config: WholeConfig, rngs: nnx.Rngs) -> nnx.Module:
    """Constructs the projector."""
    from refvlm_jax.models.projector import Projector

    return Projector(config.vision.width, config.llama.width, config.projector_depth, rngs)


PART = Part(
    name="projector",
    field="projector",
    folder="projector",
    model_types=("projector",),
    architectures=("ProjectorModel",),
    attribute="projector_depth",
    order=30,
    read=read,
    write=write,
    rows=rows,
    infer=infer,
    module=module,
    needs=("vision", "llama"),
)
