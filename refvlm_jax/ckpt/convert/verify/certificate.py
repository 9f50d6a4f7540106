"""`refvlm convert verify CKPT --torch DIR`: the parity certificate of a converted checkpoint.

Two proofs: every tensor of the checkpoint has the SHA-256 of the PyTorch one, and the parts that
installed PyTorch classes can run give the same numbers layer by layer on the same random inputs.
"""

import hashlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from refvlm_jax.ckpt.convert.export import ExportPlan, exported_tensors, plan_export
from refvlm_jax.ckpt.convert.files import write_json
from refvlm_jax.ckpt.convert.model_config import table
from refvlm_jax.ckpt.convert.orbax_io import StoredCheckpoint, open_checkpoint
from refvlm_jax.ckpt.convert.part import Part
from refvlm_jax.ckpt.convert.reader import Source, open_source
from refvlm_jax.ckpt.convert.tensors import DTYPE_NAMES, ConvertError
from refvlm_jax.ckpt.convert.verify import torch_side
from refvlm_jax.ckpt.convert.verify.compare import TOLERANCES, Entry, compare, report
from refvlm_jax.models.edits import Edit
from refvlm_jax.train.model_def import define

_TOKENS, _PICTURES = (2, 12), 2


def certify(
    checkpoint: Path, folder: Path, *, step: int | None = None, seed: int = 0
) -> tuple[dict[str, Any], list[Entry]]:
    """Compares a checkpoint with a PyTorch folder and stores the certificate beside it.

    Returns the certificate and its table. LoRA is merged, as an export would do. Runs in fp32 and
    holds one part at a time in memory.

    Raises:
      ConvertError: one of the two cannot be read, they share no tensor, or PyTorch is missing.
    """
    stored = open_checkpoint(checkpoint, step)
    plan, source = plan_export(stored), open_source(folder)
    tensors = _tensor_records(stored, plan, source)
    with jax.default_matmul_precision("highest"):
        entries = _layers(stored, plan, source, folder, np.random.default_rng(seed))
    different = [key for key, record in tensors.items() if not record["equal"]]
    layers = report(folder.name, entries) if entries else None
    versions = {name: _version(name) for name in ("jax", "torch", "transformers", "refvlm_jax")}
    found = {
        "checkpoint": checkpoint.name,
        "torch": folder.name,
        "passed": not different and (layers is None or layers["passed"]),
        "tensors_different": different,
        "layers": layers,
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
    stored: StoredCheckpoint, plan: ExportPlan, source: Source
) -> dict[str, dict[str, Any]]:
    """SHA-256, dtype and shape of every tensor that both could have; PyTorch's may be a part."""
    if not any(entry.name in source.tensors for item in plan.items for entry in item.entries):
        raise ConvertError("the checkpoint and the PyTorch folder share no tensor")
    given = {
        part.name for part in plan.parts if any(k.startswith(part.prefix) for k in source.tensors)
    }
    prefixes = tuple(part.prefix for part in plan.parts if part.name in given)
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


def _layers(
    stored: StoredCheckpoint,
    plan: ExportPlan,
    source: Source,
    folder: Path,
    rng: np.random.Generator,
) -> list[Entry]:
    by_name = {part.name: part for part in plan.parts}
    run = {"vision": _vision, "projector": _projector, "llama": _language}
    entries = []
    for name, compute in run.items():
        part = by_name.get(name)
        if part is None or not any(key.startswith(part.prefix) for key in source.tensors):
            continue
        ours, theirs = compute(stored, plan, part, source, folder, rng)
        for layer, want in theirs.items():
            found = np.asarray(ours[layer])
            entries.append(compare(f"{name}.{layer}", found, want, TOLERANCES["out"]))
    return entries


States = tuple[Mapping[str, Any], Mapping[str, np.ndarray]]


def _vision(
    stored: StoredCheckpoint,
    plan: ExportPlan,
    part: Part,
    _: Source,
    folder: Path,
    rng: np.random.Generator,
) -> States:
    size = plan.config.vision.image_size
    images = rng.standard_normal((_PICTURES, size, size, 3)).astype(np.float32)
    where = folder / part.folder if (folder / part.folder).is_dir() else folder
    theirs = torch_side.vision_states(where, np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    _, states = _module(stored, plan, part).hidden_states(jnp.asarray(images))
    return {f"layer_{k}": state for k, state in enumerate(states)}, theirs


def _projector(
    stored: StoredCheckpoint,
    plan: ExportPlan,
    part: Part,
    source: Source,
    _: Path,
    rng: np.random.Generator,
) -> States:
    x = rng.standard_normal((*_TOKENS, plan.config.vision.width)).astype(np.float32)
    weights = {
        key.removeprefix(part.prefix): ref.read()
        for key, ref in source.tensors.items()
        if key.startswith(part.prefix)
    }
    theirs = torch_side.projector_states(weights, x)
    last = f"layer_{len(theirs) - 1}"
    return {last: _module(stored, plan, part)(jnp.asarray(x))}, {last: theirs[last]}


def _language(
    stored: StoredCheckpoint,
    plan: ExportPlan,
    part: Part,
    _: Source,
    folder: Path,
    rng: np.random.Generator,
) -> States:
    config = plan.config.llama
    size = config.vocab_size
    tokens = rng.integers(0, size, _TOKENS).astype(np.int32)
    theirs = torch_side.language_states(folder, tokens)
    llama = _module(stored, plan, part)
    positions = np.broadcast_to(np.arange(_TOKENS[1]), _TOKENS)
    edits = [Edit(site="block_in", layer=k, tap=f"layer_{k}") for k in range(config.layers)]
    embeddings = llama.embed(jnp.asarray(tokens))
    found = llama(embeddings, jnp.asarray(positions), jnp.ones(_TOKENS, jnp.int32), edits=edits)
    logits = llama.logits(found.hidden)[..., :size]
    return {**found.taps, "last_hidden": found.hidden, "logits": logits}, theirs


def _module(stored: StoredCheckpoint, plan: ExportPlan, part: Part) -> Any:
    """One part of the checkpoint in fp32."""
    from functools import partial

    model, start = define(partial(part.module, plan.config)), f"{part.name}."
    names = {row.name for row in table(plan.config, part)} & stored.parameters.keys()
    params = {
        name.removeprefix(start): jnp.asarray(stored.read(stored.where(name), name), jnp.float32)
        for name in names
    }
    return model.merge(params)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
