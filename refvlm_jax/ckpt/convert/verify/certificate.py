"""`refvlm convert verify CKPT --torch DIR`: the parity certificate of a converted checkpoint.

Two proofs: every tensor of the checkpoint has the SHA-256 of the PyTorch one, and the parts that
installed PyTorch classes can run give the same numbers layer by layer on the same random inputs.
`layers_not_compared` names the parts that have the first proof alone.
"""

import hashlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from refvlm_jax.ckpt.convert.export import ExportPlan, exported_tensors, plan_export
from refvlm_jax.ckpt.convert.files import write_json
from refvlm_jax.ckpt.convert.orbax_io import StoredCheckpoint, open_checkpoint
from refvlm_jax.ckpt.convert.part import Part, owner
from refvlm_jax.ckpt.convert.reader import Source, open_source
from refvlm_jax.ckpt.convert.tensors import DTYPE_NAMES, ConvertError
from refvlm_jax.ckpt.convert.verify.compare import Entry, report
from refvlm_jax.ckpt.convert.verify.layers import Pair, layer_entries


def certify(
    checkpoint: Path, folder: Path, *, step: int | None = None, seed: int = 0
) -> tuple[dict[str, Any], list[Entry]]:
    """Compares a checkpoint with a PyTorch folder or file and stores the certificate beside it.

    Returns the certificate and its table. LoRA is merged, as an export would do. Runs in fp32 and
    holds one part at a time in memory.

    Raises:
      ConvertError: one of the two cannot be read, they share no tensor, or PyTorch is missing.
    """
    stored = open_checkpoint(checkpoint, step)
    plan, source = plan_export(stored), open_source(folder)
    given = {part.name for key in source.tensors if (part := owner(key)) is not None}
    shared = [part for part in plan.parts if part.name in given]
    tensors = _tensor_records(stored, plan, shared, source)
    entries: list[Entry] = []
    not_compared = []
    rng = np.random.default_rng(seed)
    with jax.default_matmul_precision("highest"):
        for part in shared:
            own = layer_entries(Pair(part, plan.config, stored, source, folder, rng))
            entries += own or []
            not_compared += [part.name] if own is None else []
    different = [key for key, record in tensors.items() if not record["equal"]]
    layers = report(folder.name, entries) if entries else None
    versions = {name: _version(name) for name in ("jax", "torch", "transformers", "refvlm_jax")}
    found = {
        "checkpoint": checkpoint.name,
        "torch": folder.name,
        "passed": not different and (layers is None or layers["passed"]),
        "tensors_different": different,
        "layers": layers,
        "layers_not_compared": not_compared,
        "tensors": tensors,
        "versions": versions,
        "seed": seed,
    }
    path = certificate_path(stored)
    write_json(path, found)
    return {**found, "path": str(path)}, entries


def certificate_path(stored: StoredCheckpoint) -> Path:
    """Beside the step folder it is about."""
    return stored.folder.with_name(f"parity_certificate_{stored.folder.name}.json")


def _tensor_records(
    stored: StoredCheckpoint, plan: ExportPlan, shared: Sequence[Part], source: Source
) -> dict[str, dict[str, Any]]:
    """SHA-256, dtype and shape of every tensor of the parts that both have."""
    if not any(entry.name in source.tensors for item in plan.items for entry in item.entries):
        raise ConvertError("the checkpoint and the PyTorch folder share no tensor")
    prefixes = tuple(part.prefix for part in shared)
    found = {}
    for key, array in exported_tensors(stored, plan):
        if not key.startswith(prefixes):
            continue
        own = _sha256(array)
        theirs = _sha256(source.tensors[key].read()) if key in source.tensors else None
        found[key] = {
            "sha256": own,
            "dtype": DTYPE_NAMES[array.dtype],
            "shape": list(array.shape),
            "equal": own == theirs and array.shape == source.tensors[key].shape,
        }
    return found


def _sha256(array: np.ndarray) -> str:
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.sha256(data.data).hexdigest()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
