"""PyTorch weights of the vision-side modules under our dotted names (test code)."""

from pathlib import Path

from golden_weights import Weights, conv, linear, norm, stacked

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"


def convnext(w: Weights, depths: list[int]) -> Weights:
    t = "visual_tower.visual.trunk"
    found = conv(w, f"{t}.stem.0", "stem.conv") | norm(w, f"{t}.stem.1", "stem.norm")
    for s, depth in enumerate(depths):
        blocks = []
        for j in range(depth):
            at = f"{t}.stages.{s}.blocks.{j}"
            block = conv(w, f"{at}.conv_dw", "depthwise") | norm(w, f"{at}.norm", "norm")
            block |= linear(w, f"{at}.mlp.fc1", "fc1") | linear(w, f"{at}.mlp.fc2", "fc2")
            blocks.append(block | {"layer_scale": w[f"{at}.gamma"]})
        found |= stacked(blocks, f"stages.{s}.block")
        if s:
            down, ours = f"{t}.stages.{s}.downsample", f"downsamples.{s - 1}"
            found |= norm(w, f"{down}.0", f"{ours}.norm") | conv(w, f"{down}.1", f"{ours}.conv")
    return found


def two_way(w: Weights, key: str, layers: int, name: str) -> Weights:
    parts = {
        "self_attn": "self_attn",
        "to_image": "cross_attn_token_to_image",
        "to_tokens": "cross_attn_image_to_token",
    }
    found = []
    for i in range(layers):
        at, layer = f"{key}.layers.{i}", {}
        for ours, theirs in parts.items():
            layer |= attention(w, f"{at}.{theirs}", ours)
        for k in range(1, 5):
            layer |= norm(w, f"{at}.norm{k}", f"norm{k}")
        found.append(
            layer | linear(w, f"{at}.mlp.lin1", "fc1") | linear(w, f"{at}.mlp.lin2", "fc2")
        )
    return (
        stacked(found, f"{name}.layers.block")
        | attention(w, f"{key}.final_attn_token_to_image", f"{name}.final")
        | norm(w, f"{key}.norm_final_attn", f"{name}.norm")
    )


def attention(w: Weights, key: str, name: str) -> Weights:
    found = {}
    for part in ("q", "k", "v", "out"):
        found |= linear(w, f"{key}.{part}_proj", f"{name}.{part}")
    return found


def adapter(w: Weights, layers: int) -> Weights:
    """All but `output_tokens`, which nothing uses."""
    a = "vd_adapter"
    found = {
        "text_embedding": w[f"{a}.text_embedding.weight"],
        "image_position.fourier": w[f"{a}.pe_image.positional_encoding_gaussian_matrix"],
    }
    for name in ("image", "text"):
        for k in (1, 2):
            found |= linear(w, f"{a}.in_proj_{name}.lin{k}", f"{name}.fc{k}")
    return found | two_way(w, f"{a}.model", layers, "transformer")
