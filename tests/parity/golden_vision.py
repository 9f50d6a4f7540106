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
