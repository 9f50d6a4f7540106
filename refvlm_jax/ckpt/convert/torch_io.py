"""PyTorch's own files (.bin, .pth, .pt), read without running anything that is in them."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from refvlm_jax.ckpt.convert.tensors import ConvertError, Index, TensorRef

_NESTS = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which training code puts the tensors of a checkpoint."""


def open_torch(path: Path) -> dict[str, TensorRef]:
    """The tensors of a file by key; memory-mapped where the file's format allows it.

    Raises:
      ConvertError: PyTorch is not installed, the file is damaged, or it holds anything but plain
        tensors and containers (it is never unpickled freely).
    """
    try:
        import torch
    except ImportError as error:
        raise ConvertError(
            f"{path} can only be read by PyTorch; `pip install torch`, or convert it to safetensors"
        ) from error
    load = partial(torch.load, path, map_location="cpu", weights_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = load(mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                found = load()  # the format before PyTorch 1.6 cannot be mapped
    except Exception as error:  # the reader raises many types, none of them its own
        why = " ".join(str(error).split())[:160] or type(error).__name__
        raise ConvertError(
            f"{path} cannot be read as plain tensors ({why}); it is damaged or holds other objects: "
            "save its state_dict alone, or as safetensors"
        ) from error
    tensors = _tensors(found, torch.Tensor)
    if not tensors:
        raise ConvertError(f"{path} holds no tensors; a state_dict was expected")
    return {key: _ref(key, value, path, torch) for key, value in tensors.items()}


def _tensors(found: Any, kind: type) -> dict[str, Any]:
    """The innermost mapping of names to tensors."""
    if not isinstance(found, dict):
        return {}
    for nest in _NESTS:
        if isinstance(found.get(nest), dict) and (inner := _tensors(found[nest], kind)):
            return inner
    return {str(key): value for key, value in found.items() if isinstance(value, kind)}


def _ref(key: str, tensor: Any, path: Path, torch: Any) -> TensorRef:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        raise ConvertError(f"{path}: {key} is no dense real tensor; it cannot be converted")
    dtype = _numpy(tensor[(0,) * tensor.ndim] if tensor.numel() else tensor.flatten(), torch).dtype

    def read(index: Index) -> np.ndarray:
        return _numpy(tensor.detach()[index] if tensor.ndim else tensor.detach(), torch)

    return TensorRef(tuple(tensor.shape), dtype, read)


def _numpy(tensor: Any, torch: Any) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:  # NumPy has no such dtype of its own
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
