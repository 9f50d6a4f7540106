"""The projector."""

from collections.abc import Mapping
from typing import Any

from refvlm_jax.ckpt.convert.names import Rows, linear
from refvlm_jax.ckpt.convert.part import Fields, Part, TorchConfig, count
from refvlm_jax.ckpt.convert.passes import projector_pass
from refvlm_jax.ckpt.convert.tensors import Shape
from refvlm_jax.config.model import RefVLMConfig


def rows(config: RefVLMConfig) -> Rows:
    """The name table: activations take the odd places of PyTorch's list."""
    depth = config.projector_depth
    return [r for i in range(depth) for r in linear(f"layers.{i}", f"model.{2 * i}")]


def read(config: TorchConfig, root: TorchConfig) -> int:
    """Its depth; the widths are those of its neighbours."""
    f = Fields("projector", config)
    f.only("hidden_act", "gelu")
    f.only("bias", True)
    return f.get("depth", 2)


def write(config: RefVLMConfig) -> dict[str, Any]:
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
    run=projector_pass,
    needs=("vision", "llama"),
)
