"""Golden bundles: small weights, a configuration and recorded numbers of the PyTorch model.

`NAME.config.json`, `NAME.weights.safetensors`, `NAME.tensors.safetensors`; the tensors are `in.*`,
`out.*`, `loss.*`, `gradnorm.<key>` and `grad.<key>`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refvlm_jax.ckpt.convert.import_ import Plan, plan_import
from refvlm_jax.ckpt.convert.reader import Source, read_json
from refvlm_jax.ckpt.convert.safetensors_io import open_safetensors
from refvlm_jax.ckpt.convert.tensors import ConvertError, whole

_ENDINGS = (".config.json", ".weights.safetensors", ".tensors.safetensors")


@dataclass(frozen=True)
class Bundle:
    """A bundle with its weights mapped to this library's names."""

    name: str
    config: Mapping[str, Any]
    """As it was recorded."""
    plan: Plan
    tensors: Mapping[str, np.ndarray]

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        """Tensors whose names start with `prefix.`, without it."""
        start = f"{prefix}."
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}

    def params(self) -> dict[str, np.ndarray]:
        """All parameters by our names, in fp32."""
        tensors = self.plan.tensors
        found = {row.name: row.read(tensors, whole(row.shape(tensors))) for row in self.plan.rows}
        return {name: array.astype(np.float32) for name, array in found.items()}


def bundle_prefix(path: Path) -> Path | None:
    """The prefix of a bundle given by it or by one of its files; None if there is no bundle."""
    for ending in _ENDINGS:
        if path.name.endswith(ending):
            path = path.with_name(path.name.removesuffix(ending))
    return path if path.with_name(path.name + _ENDINGS[0]).is_file() else None


def open_bundle(path: Path) -> Bundle:
    """Reads a bundle.

    Raises:
      ConvertError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    prefix = bundle_prefix(path)
    if prefix is None:
        raise ConvertError(f"{path} is no bundle: {path}{_ENDINGS[0]} does not exist")
    config, weights, recorded = (prefix.with_name(prefix.name + ending) for ending in _ENDINGS)
    for file in (weights, recorded):
        if not file.is_file():
            raise ConvertError(f"{file} is missing, which belongs to {config.name}; restore it")
    tree = read_json(config)
    source = Source(dict(open_safetensors(weights).tensors), _as_parts(tree))
    tensors = {k: ref.read() for k, ref in open_safetensors(recorded).tensors.items()}
    return Bundle(prefix.name, tree, plan_import(source), tensors)


def _as_parts(config: dict[str, Any]) -> dict[str, Any]:
    """Bundles of one module have its fields at the top."""
    if "llm" in config:
        return config
    if "dims" in config:
        return {"visual_tower": config}
    if "sam" in config:
        return {"visual_decoder": {"mask": config}}
    return config
