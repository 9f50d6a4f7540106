"""The two-way adapter (`vd_adapter`)."""

from collections.abc import Mapping
from typing import Any

from flax import nnx

from refvlm_jax.ckpt.convert.names import Rows, linear, norm, prefixed, row, stack
from refvlm_jax.ckpt.convert.part import Fields, Part, TorchConfig, count
from refvlm_jax.ckpt.convert.tensors import ConvertError, Shape
from refvlm_jax.ckpt.convert.whole import WholeConfig
from refvlm_jax.config.model import AdapterConfig
from refvlm_jax.trp.tokens import PHRASE_CLOSE, PHRASE_OPEN

_ATTENTIONS = {
    "self_attn": "self_attn",
    "to_image": "cross_attn_token_to_image",
    "to_tokens": "cross_attn_image_to_token",
}


def two_way_rows(name: str, key: str, layers: int) -> Rows:
    """SAM's two-way transformer at `key`."""
    found = [
        *stack("layers.block", layers, lambda i: _layer(f"layers.{i}")),
        *attention_rows("final", "final_attn_token_to_image"),
        *norm("norm", "norm_final_attn"),
    ]
    return prefixed(found, f"{name}.", f"{key}.")


def attention_rows(name: str, key: str) -> Rows:
    """Its attention at `key`."""
    return [r for p in ("q", "k", "v", "out") for r in linear(f"{name}.{p}", f"{key}.{p}_proj")]


def _layer(key: str) -> Rows:
    found: Rows = []
    for ours, theirs in _ATTENTIONS.items():
        found += attention_rows(ours, f"{key}.{theirs}")
    for k in range(1, 5):
        found += norm(f"norm{k}", f"{key}.norm{k}")
    return [*found, *linear("fc1", f"{key}.mlp.lin1"), *linear("fc2", f"{key}.mlp.lin2")]


def rows(config: WholeConfig) -> Rows:
    """The name table; the reference's `output_tokens` take part in nothing."""
    c = config.adapter
    assert c is not None
    return [
        *_projection("image"),
        *_projection("text"),
        row("text_embedding", "text_embedding.weight"),
        row("image_position.fourier", "pe_image.positional_encoding_gaussian_matrix"),
        *two_way_rows("transformer", "model", c.layers),
    ]


def _projection(name: str) -> Rows:
    return [r for k in (1, 2) for r in linear(f"{name}.fc{k}", f"in_proj_{name}.lin{k}")]


def module(config: WholeConfig, rngs: nnx.Rngs) -> nnx.Module:
    """Constructs the adapter."""
    from refvlm_jax.models.adapter import TwoWayAdapter

    assert config.adapter is not None
    return TwoWayAdapter(config.adapter, config.llama.width, rngs)


def read(config: TorchConfig, root: TorchConfig) -> AdapterConfig:
    """From config.json, with the released defaults for what it leaves out."""
    f = Fields("vd_adapter", config)
    widths = {f.get(name, 1024) for name in ("d_input_image", "d_input_token", "d_model")}
    if len(widths) > 1:
        raise ConvertError(
            f"vd_adapter: d_input_image, d_input_token and d_model are {sorted(widths)}, but its "
            "input projections keep the width, so they must be equal"
        )
    f.only("dropout", 0, 0.0)
    ids = root.get("special_token_ids") or {}
    known = tuple(ids[token] for token in (PHRASE_OPEN, PHRASE_CLOSE) if token in ids)
    return AdapterConfig(
        phrase_length=f.get("phrase_max_length", 100),
        phrase_ids=known if len(known) == 2 else AdapterConfig.phrase_ids,
        ref_length=f.get("ref_max_length", 100),
        projection_dim=f.get("projection_dim", 8192),
        layers=f.get("num_layers", 2),
        heads=f.get("n_heads", 8),
        mlp_dim=f.get("d_ffn", 2048),
    )


def write(config: WholeConfig) -> dict[str, Any]:
    """config.json."""
    c = config.adapter
    assert c is not None
    if c.projection_dim != 8192:
        raise ConvertError(
            f"adapter.projection_dim = {c.projection_dim} has no PyTorch counterpart, which always "
            "uses 8192"
        )
    width = config.llama.width
    return {
        "phrase_max_length": c.phrase_length,
        "ref_max_length": c.ref_length,
        "d_input_image": width,
        "d_input_token": width,
        "d_model": width,
        "n_heads": c.heads,
        "dropout": 0,
        "d_ffn": c.mlp_dim,
        "num_layers": c.layers,
    }


def infer(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Sizes from shapes; eight heads, and as many places for references as for phrase tokens."""
    places, width = shapes["text_embedding.weight"]
    refs = shapes.get("output_tokens.weight", (places // 2,))[0]
    return {
        "phrase_max_length": places - refs,
        "ref_max_length": refs,
        **dict.fromkeys(("d_input_image", "d_input_token", "d_model"), width),
        "projection_dim": shapes["in_proj_text.lin1.weight"][0],
        "d_ffn": shapes["model.layers.0.mlp.lin1.weight"][0],
        "num_layers": count(shapes, "model.layers."),
    }


PART = Part(
    name="adapter",
    field="vd_adapter",
    folder="vd_adapter",
    model_types=("vd_adapter",),
    architectures=("VDAdapterModel",),
    attribute="adapter",
    order=45,
    read=read,
    write=write,
    rows=rows,
    module=module,
    infer=infer,
    needs=("llama",),
)
