"""What the parts with a DETR decoder share: its name table and its configuration fields."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

from refvlm_jax.ckpt.convert.names import Rows, linear, norm, prefixed, stack
from refvlm_jax.ckpt.convert.part import Fields, TorchConfig
from refvlm_jax.ckpt.convert.tensors import ConvertError
from refvlm_jax.ckpt.convert.whole import WholeConfig
from refvlm_jax.config.model import BoxUnitConfig, KeypointUnitConfig, MaskUnitConfig


def detr_rows(name: str, key: str, layers: int) -> Rows:
    """Hugging Face's DetrDecoder at `key`."""
    found = stack("layers.block", layers, lambda i: _layer(f"layers.{i}"))
    return prefixed([*found, *norm("norm", "layernorm")], f"{name}.", f"{key}.")


def _layer(key: str) -> Rows:
    found: Rows = []
    for ours, theirs in (("self_attn", "self_attn"), ("cross_attn", "encoder_attn")):
        for name in ("q", "k", "v", "out"):
            found += linear(f"{ours}.{name}", f"{key}.{theirs}.{name}_proj")
    norms = ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")
    for place, theirs in enumerate(norms, 1):
        found += norm(f"norm{place}", f"{key}.{theirs}")
    return [*found, *linear("fc1", f"{key}.fc1"), *linear("fc2", f"{key}.fc2")]


def detr_fields(f: Fields, *, default_features: Sequence[int], dropout: float) -> dict[str, Any]:
    """Configuration fields that every unit decoder has, under our names."""
    f.only("activation_function", "relu")
    return {
        "features": tuple(f.get("encoder_input_index", default_features, (list, tuple))),
        "width": f.get("d_model", 256),
        "layers": f.get("decoder_layers", 6),
        "heads": f.get("decoder_attention_heads", 8),
        "mlp_dim": f.get("decoder_ffn_dim", 2048),
        "dropout": float(f.get("dropout", dropout, (int, float))),
    }


def empty_queries(root: TorchConfig) -> Literal["bias", "zero"]:
    """What the reference's empty query slots hold: with the adapter, it pads after the projection."""
    return "zero" if root.get("vd_adapter") else "bias"


def write_detr(
    c: BoxUnitConfig | MaskUnitConfig | KeypointUnitConfig,
    config: WholeConfig,
    name: str,
    *,
    query_dim: int | None = None,
) -> dict[str, Any]:
    """The same fields under their PyTorch names; `query_dim` is the language model's width if None.

    Raises:
      ConvertError: the decoder has an option that PyTorch's lacks.
    """
    if c.mask_padding_queries or c.value_positions or c.position_cycles != 1.0:
        raise ConvertError(
            f"{name}.mask_padding_queries, value_positions and position_cycles have no PyTorch "
            "counterpart; only decoders that leave them at their defaults can be exported"
        )
    wanted = "bias" if config.adapter is None else "zero"
    if getattr(c, "empty_queries", wanted) != wanted:
        raise ConvertError(
            f"{name}.empty_queries = {c.empty_queries!r} has no PyTorch counterpart, which has "  # type: ignore[union-attr]
            f"{wanted!r} {'without' if config.adapter is None else 'with'} the adapter"
        )
    dims = config.unit_dims
    return {
        "num_queries": c.num_queries,
        "quries_input_dim": query_dim or config.query_width,
        "encoder_input_index": list(c.features),
        "encoder_input_dim": [dims[i] for i in c.features],
        "d_model": c.width,
        "decoder_layers": c.layers,
        "decoder_attention_heads": c.heads,
        "decoder_ffn_dim": c.mlp_dim,
        "activation_function": "relu",
        "dropout": c.dropout,
    }


def feature_index(
    where: str, known: Mapping[Any, tuple[int, ...]], channels: Hashable
) -> dict[str, Any]:
    """The feature maps that released decoders with these input channels read."""
    if channels not in known:
        raise ConvertError(
            f"{where}: which feature maps a decoder of {channels} input channels reads cannot be "
            "told from its weights; give its config.json with --config"
        )
    return {"encoder_input_index": list(known[channels])}
