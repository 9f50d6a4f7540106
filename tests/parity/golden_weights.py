"""PyTorch weights of a golden bundle under our dotted names (test code, one direction only)."""

import numpy as np

Weights = dict[str, np.ndarray]


def linear(w: Weights, key: str, name: str) -> Weights:
    found = {f"{name}.kernel": w[f"{key}.weight"].T}
    return found | ({f"{name}.bias": w[f"{key}.bias"]} if f"{key}.bias" in w else {})


def norm(w: Weights, key: str, name: str) -> Weights:
    found = {f"{name}.scale": w[f"{key}.weight"]}
    return found | ({f"{name}.bias": w[f"{key}.bias"]} if f"{key}.bias" in w else {})


def conv(w: Weights, key: str, name: str) -> Weights:
    found = {f"{name}.kernel": w[f"{key}.weight"].transpose(2, 3, 1, 0)}
    return found | ({f"{name}.bias": w[f"{key}.bias"]} if f"{key}.bias" in w else {})


def stacked(layers: list[Weights], name: str) -> Weights:
    return {f"{name}.{key}": np.stack([layer[key] for layer in layers]) for key in layers[0]}


def clip(w: Weights, layers: int) -> Weights:
    v = "visual_encoder.vision_model"
    blocks = []
    for i in range(layers):
        at = f"{v}.encoder.layers.{i}"
        block = norm(w, f"{at}.layer_norm1", "norm1") | norm(w, f"{at}.layer_norm2", "norm2")
        for ours, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "out")):
            block |= linear(w, f"{at}.self_attn.{theirs}_proj", ours)
        blocks.append(block | linear(w, f"{at}.mlp.fc1", "fc1") | linear(w, f"{at}.mlp.fc2", "fc2"))
    return (
        {
            "class_token": w[f"{v}.embeddings.class_embedding"][None],
            "position": w[f"{v}.embeddings.position_embedding.weight"],
        }
        | conv(w, f"{v}.embeddings.patch_embedding", "patch_embed")
        | norm(w, f"{v}.pre_layrnorm", "pre_norm")
        | stacked(blocks, "blocks.block")
    )


def llama(w: Weights, layers: int, heads: int, kv_heads: int) -> Weights:
    blocks = []
    for i in range(layers):
        at = f"llm.model.layers.{i}"
        block = norm(w, f"{at}.input_layernorm", "attn_norm")
        block |= norm(w, f"{at}.post_attention_layernorm", "mlp_norm")
        for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            kernel = w[f"{at}.self_attn.{name}_proj.weight"].T
            block[f"attn.{name}.kernel"] = kernel.reshape(len(kernel), count, -1)
        out = w[f"{at}.self_attn.o_proj.weight"].T
        block["attn.o.kernel"] = out.reshape(heads, -1, out.shape[-1])
        for name in ("gate", "up", "down"):
            block[f"mlp.{name}.kernel"] = w[f"{at}.mlp.{name}_proj.weight"].T
        blocks.append(block)
    return (
        {
            "embedding": w["llm.model.embed_tokens.weight"],
            "lm_head": w["llm.lm_head.weight"].T,
        }
        | norm(w, "llm.model.norm", "norm")
        | stacked(blocks, "blocks.block")
    )


def detr(w: Weights, key: str, layers: int, name: str) -> Weights:
    found = []
    for i in range(layers):
        at = f"{key}.layers.{i}"
        layer = {}
        for ours, theirs in (("self_attn", "self_attn"), ("cross_attn", "encoder_attn")):
            for part in ("q", "k", "v", "out"):
                layer |= linear(w, f"{at}.{theirs}.{part}_proj", f"{ours}.{part}")
        layer |= norm(w, f"{at}.self_attn_layer_norm", "norm1")
        layer |= norm(w, f"{at}.encoder_attn_layer_norm", "norm2")
        layer |= norm(w, f"{at}.final_layer_norm", "norm3")
        found.append(layer | linear(w, f"{at}.fc1", "fc1") | linear(w, f"{at}.fc2", "fc2"))
    return stacked(found, f"{name}.layers.block") | norm(w, f"{key}.layernorm", f"{name}.norm")


def box(w: Weights, layers: int) -> Weights:
    b = "visual_decoder.box"
    found = linear(w, f"{b}.in_proj_visual_feats", "memory")
    found |= linear(w, f"{b}.in_proj_queries", "query")
    found |= {"query_position": w[f"{b}.query_position_embeddings.weight"]}
    found |= detr(w, f"{b}.decoder", layers, "decoder")
    for i in range(3):
        found |= linear(w, f"{b}.predictor.layers.{i}", f"head.layers.{i}")
    return found


def pixel_decoder(w: Weights, key: str, laterals: int, ours: str = "") -> Weights:
    fpn = f"{key}.fpn"
    found = conv(w, f"{fpn}.stem.0", f"{ours}stem.conv")
    found |= norm(w, f"{fpn}.stem.1", f"{ours}stem.norm")
    for k in range(laterals):
        at = f"{fpn}.layers.{k}"
        found |= conv(w, f"{at}.proj.0", f"{ours}laterals.{k}.conv")
        found |= norm(w, f"{at}.proj.1", f"{ours}laterals.{k}.norm")
        found |= conv(w, f"{at}.block.0", f"{ours}blocks.{k}.conv")
        found |= norm(w, f"{at}.block.1", f"{ours}blocks.{k}.norm")
    return found | conv(w, f"{key}.mask_projection", f"{ours}projection")


def mask(w: Weights, layers: int, laterals: int) -> Weights:
    m = "visual_decoder.mask"
    found = {"query_position": w[f"{m}.query_position_embeddings.weight"]}
    found |= linear(w, f"{m}.in_proj_queries", "query")
    if f"{m}.in_proj_visual_feats.weight" in w:
        kernel = w[f"{m}.in_proj_visual_feats.weight"][:, :, 0, 0].T
        found |= {"memory.kernel": kernel, "memory.bias": w[f"{m}.in_proj_visual_feats.bias"]}
    found |= pixel_decoder(w, f"{m}.pixel_decoder", laterals, "pixel_decoder.")
    found |= detr(w, f"{m}.query_decoder", layers, "decoder")
    for i in range(3):
        found |= linear(w, f"{m}.mask_embedder.{i}.0", f"head.layers.{i}")
    return found


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {f"{prefix}.{key}": value for key, value in weights.items()}


def refvlm(w: Weights, config: dict) -> Weights:
    """All parameters of a bundle with box and mask decoders."""
    text, decoders = config["llm"], config["visual_decoder"]
    found = prefixed("vision", clip(w, config["visual_encoder"]["num_hidden_layers"]))
    heads = (text["num_attention_heads"], text["num_key_value_heads"])
    found |= prefixed("llama", llama(w, text["num_hidden_layers"], *heads))
    found |= linear(w, "projector.model.0", "projector.layers.0")
    found |= linear(w, "projector.model.2", "projector.layers.1")
    found["region_prompts.position"] = w["vpt_encoder.model.position_embedding.weight"]
    found |= linear(w, "vpt_encoder.model.mask_embedding", "region_prompts.mask_token")
    found |= prefixed("box", box(w, decoders["box"]["decoder_layers"]))
    laterals = len(decoders["mask"]["encoder_input_index"]) - 1
    return found | prefixed("mask", mask(w, decoders["mask"]["decoder_layers"], laterals))
