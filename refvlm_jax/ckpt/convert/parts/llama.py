"""Llama (Vicuna, Llama 3, Mistral) as Hugging Face's LlamaForCausalLM."""

from collections.abc import Mapping
from typing import Any

from flax import nnx

from refvlm_jax.ckpt.convert.names import (
    KEEP,
    MATRIX,
    Chain,
    Pad,
    Row,
    Rows,
    Split,
    linear,
    norm,
    prefixed,
    row,
    stack,
)
from refvlm_jax.ckpt.convert.part import Fields, Part, TorchConfig, count
from refvlm_jax.ckpt.convert.tensors import ConvertError, Shape
from refvlm_jax.ckpt.convert.whole import WholeConfig
from refvlm_jax.config.model import LlamaConfig, LoraConfig

_PLACES = {
    **{name: ("attn", f"self_attn.{name}_proj") for name in ("q", "k", "v", "o")},
    **{name: ("mlp", f"mlp.{name}_proj") for name in ("gate", "up", "down")},
}
"""Projection -> our group and its PyTorch name; also the names of LoRA targets."""


def rows(config: WholeConfig) -> Rows:
    """The name table."""
    c = config.llama
    extra = c.vocab_padding
    table = Pad(0, extra) if extra else KEEP
    columns = Chain((MATRIX, Pad(1, extra))) if extra else MATRIX
    head = [] if c.tie_embeddings else [row("lm_head", "lm_head.weight", columns)]
    return [
        row("embedding", "model.embed_tokens.weight", table),
        *stack("blocks.block", c.layers, lambda i: _layer(c, f"model.layers.{i}")),
        *norm("norm", "model.norm", bias=False),
        *head,
    ]


def _layer(c: LlamaConfig, key: str) -> Rows:
    out_heads, in_heads = (Chain((MATRIX, Split(axis, c.head_dim))) for axis in (1, 0))
    kernels = {"q": out_heads, "k": out_heads, "v": out_heads, "o": in_heads}
    found = [
        *norm("attn_norm", f"{key}.input_layernorm", bias=False),
        *norm("mlp_norm", f"{key}.post_attention_layernorm", bias=False),
    ]
    for name, (group, theirs) in _PLACES.items():
        found += linear(
            f"{group}.{name}", f"{key}.{theirs}", bias=False, kernel=kernels.get(name, MATRIX)
        )
        if c.lora is not None and name in c.lora.targets:
            found += prefixed(_LORA, f"{group}.{name}.lora.", f"{key}.{theirs}.")
    return found


_LORA: Rows = [
    Row("lora_a", ("lora_A.weight",), MATRIX),
    Row("lora_b", ("lora_B.weight",), MATRIX),
]


def read(config: TorchConfig, root: TorchConfig) -> LlamaConfig:
    """From config.json; also the `rope_parameters` of newer versions."""
    f = Fields("llm", config)
    f.only("hidden_act", "silu")
    for name in ("attention_bias", "mlp_bias"):
        f.only(name, False, None)
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {}
    kind = {**rope, **scaling}.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        raise ConvertError(
            f"llm: rotary positions of type {kind!r} are not supported; use an unscaled model"
        )
    heads, width = f.get("num_attention_heads"), f.get("hidden_size")
    window = f.get("sliding_window", None) if config.get("model_type") == "mistral" else None
    return LlamaConfig(
        vocab_size=f.get("vocab_size"),
        width=width,
        layers=f.get("num_hidden_layers"),
        heads=heads,
        kv_heads=f.get("num_key_value_heads", None) or heads,
        head_dim=f.get("head_dim", None) or width // heads,
        mlp_dim=f.get("intermediate_size"),
        rope_theta=float(rope.get("rope_theta", f.get("rope_theta", 10000.0, (int, float)))),
        norm_eps=float(f.get("rms_norm_eps", 1e-6, (int, float))),
        sliding_window=window,
        tie_embeddings=f.get("tie_word_embeddings", False, bool),
        lora=_lora(root.get("llm_lora")),
    )


def _lora(config: TorchConfig | None) -> LoraConfig | None:
    """From adapter_config.json."""
    if not config:
        return None
    f = Fields("llm_adapter", config)
    f.only("peft_type", "LORA")
    f.only("bias", "none")
    for name in ("use_dora", "use_rslora", "fan_in_fan_out"):
        f.only(name, False, None)
    for name in ("rank_pattern", "alpha_pattern", "modules_to_save"):
        f.only(name, None, {}, [])
    wanted = f.get("target_modules", list(_TARGETS), (list, tuple))
    if unknown := sorted(set(wanted) - _TARGETS.keys()):
        raise ConvertError(f"llm_adapter: target {unknown[0]!r} is none of {', '.join(_TARGETS)}")
    return LoraConfig(
        rank=f.get("r"),
        alpha=float(f.get("lora_alpha", kind=(int, float))),
        targets=tuple(name for theirs, name in _TARGETS.items() if theirs in wanted),
    )


_TARGETS = {theirs.split(".")[-1]: name for name, (_, theirs) in _PLACES.items()}
"""LoRA target in PyTorch -> our projection."""


def write_lora(config: LoraConfig) -> dict[str, Any]:
    """adapter_config.json of PEFT."""
    alpha = int(config.alpha) if config.alpha == int(config.alpha) else config.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": config.rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": [t for t, name in _TARGETS.items() if name in config.targets],
    }


def write(config: WholeConfig) -> dict[str, Any]:
    """config.json of LlamaForCausalLM, or of MistralForCausalLM where attention has a window."""
    c = config.llama
    kind, cls = ("llama", "LlamaForCausalLM")
    window: dict[str, Any] = {}
    if c.sliding_window is not None:
        kind, cls, window = "mistral", "MistralForCausalLM", {"sliding_window": c.sliding_window}
    return {
        "model_type": kind,
        "architectures": [cls],
        "vocab_size": c.vocab_size,
        "hidden_size": c.width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.mlp_dim,
        "hidden_act": "silu",
        "rope_theta": c.rope_theta,
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tie_embeddings,
        **window,
    }


def infer(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Sizes from shapes; heads of 128, as in every released language model."""
    vocab, width = shapes["model.embed_tokens.weight"]
    layers = "model.layers."
    kv = shapes[f"{layers}0.self_attn.k_proj.weight"][0]
    queries = shapes[f"{layers}0.self_attn.q_proj.weight"][0]
    if queries % 128 or kv % 128:
        raise ConvertError(
            f"the head count of a language model of width {width} cannot be told from its weights; "
            "give its config.json with --config"
        )
    return {
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": count(shapes, layers),
        "num_attention_heads": queries // 128,
        "num_key_value_heads": kv // 128,
        "head_dim": 128,
        "intermediate_size": shapes[f"{layers}0.mlp.gate_proj.weight"][0],
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": "lm_head.weight" not in shapes,
    }


def module(config: WholeConfig, rngs: nnx.Rngs) -> nnx.Module:
    """Constructs the language model."""
    from refvlm_jax.models.llama import Llama

    return Llama(config.llama, rngs)


PART = Part(
    name="llama",
    field="llm",
    folder="",
    model_types=("llama", "mistral"),
    architectures=("LlamaForCausalLM",),
    attribute="llama",
    order=40,
    read=read,
    write=write,
    rows=rows,
    infer=infer,
    module=module,
    ignored=("*rotary_emb.inv_freq",),
)
