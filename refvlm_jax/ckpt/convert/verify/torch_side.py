"""PyTorch's half of a parity certificate: hidden states of its own classes on given inputs.

The only file of the converter, beside the reader of PyTorch files, that imports torch.
"""

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refvlm_jax.ckpt.convert.tensors import ConvertError


def _torch() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ConvertError(
            f"--torch compares with PyTorch itself, which is not installed ({error.name}); "
            "`pip install torch transformers`, or leave --torch out"
        ) from error
    return torch, transformers


def language_states(folder: Path, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """`layer_k` = input of block k, the state after the final norm, and the logits."""
    torch, transformers = _torch()
    model = _load(transformers.AutoModelForCausalLM, folder, torch)
    with torch.no_grad():
        found = model(input_ids=torch.from_numpy(tokens).long(), output_hidden_states=True)
    states = [state.numpy() for state in found.hidden_states]
    named = {f"layer_{k}": state for k, state in enumerate(states[:-1])}
    return {**named, "last_hidden": states[-1], "logits": found.logits.numpy()}


def vision_states(folder: Path, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """`layer_k` = hidden state k with the class token; pixels are NCHW."""
    torch, transformers = _torch()
    model = _load(transformers.CLIPVisionModel, folder, torch)
    with torch.no_grad():
        found = model(pixel_values=torch.from_numpy(pixels), output_hidden_states=True)
    return {f"layer_{k}": state.numpy() for k, state in enumerate(found.hidden_states)}


def projector_states(weights: Mapping[str, np.ndarray], x: np.ndarray) -> dict[str, np.ndarray]:
    """`layer_k` = output of linear map k; GELU stands between them."""
    torch, _ = _torch()
    value, found = torch.from_numpy(x), {}
    count = sum(key.endswith(".weight") for key in weights)
    for k in range(count):
        kernel, bias = (
            torch.from_numpy(weights[f"model.{2 * k}.{name}"].astype(np.float32))
            for name in ("weight", "bias")
        )
        value = torch.nn.functional.gelu(value) if k else value
        value = torch.nn.functional.linear(value, kernel, bias)
        found[f"layer_{k}"] = value.numpy()
    return found


def _load(kind: Any, folder: Path, torch: Any) -> Any:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is the report's
            model = _from_pretrained(kind, folder, torch)
    except Exception as error:  # from_pretrained raises many types
        why = " ".join(str(error).split())[:160]
        raise ConvertError(f"{folder} cannot be loaded by transformers ({why})") from error
    return model.eval()


def _from_pretrained(kind: Any, folder: Path, torch: Any) -> Any:
    return kind.from_pretrained(
        str(folder), dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
