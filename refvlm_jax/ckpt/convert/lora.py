"""LoRA on the converter's side: finding the pair of a kernel and adding it, without a device."""

from collections.abc import Mapping

import numpy as np

from refvlm_jax.ckpt.convert.names import Row


def adapter_rows(row: Row, low_rank: Mapping[str, Row]) -> tuple[Row, Row] | None:
    """The two LoRA rows of a kernel; None if it has none."""
    if not row.name.endswith(".kernel"):
        return None
    start = row.name.removesuffix("kernel") + "lora."
    names = (f"{start}lora_a", f"{start}lora_b")
    if names[0] not in low_rank:
        return None
    return low_rank[names[0]], low_rank[names[1]]


def merge_lora(kernel: np.ndarray, a: np.ndarray, b: np.ndarray, factor: float) -> np.ndarray:
    """kernel + factor * a b of every layer, summed in fp32 and rounded once to the kernel's dtype."""
    out = np.empty_like(kernel)
    for layer, (w, low, high) in enumerate(zip(kernel, a, b, strict=True)):
        delta = low.astype(np.float32) @ high.astype(np.float32)
        out[layer] = (w.astype(np.float32) + factor * delta.reshape(w.shape)).astype(w.dtype)
    return out
