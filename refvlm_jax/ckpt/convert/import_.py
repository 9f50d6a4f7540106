"""`refvlm convert import`: PyTorch weights to a checkpoint of this library, streamed."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from refvlm_jax.ckpt.convert.files import check_free, fresh
from refvlm_jax.ckpt.convert.model_config import complete, compose, present, table
from refvlm_jax.ckpt.convert.names import Row, Rows
from refvlm_jax.ckpt.convert.part import Part, check_owned, owner
from refvlm_jax.ckpt.convert.reader import Source, open_sources
from refvlm_jax.ckpt.convert.tensors import DTYPE_NAMES, ConvertError, Shape, Tensors
from refvlm_jax.ckpt.convert.whole import WholeConfig, write_config, write_notes

EXTRA = "extra"
"""Checkpoint item of tensors that the model does not use; their names are `extra.<PyTorch key>`."""


@dataclass(frozen=True)
class Plan:
    """What a set of PyTorch weights becomes."""

    tensors: Tensors
    torch_config: dict[str, Any]
    config: WholeConfig
    parts: tuple[Part, ...]
    rows: Rows
    extra: tuple[str, ...]
    """Keys the model does not use; kept."""
    ignored: tuple[str, ...]
    """Keys of other models (CLIP's text tower) or recomputed constants; left out."""

    @property
    def shapes(self) -> dict[str, Shape]:
        """Our parameters."""
        return {row.name: row.shape(self.tensors) for row in self.rows}


def plan_import(source: Source, pad_vocab: int = 1) -> Plan:
    """Decides, from headers alone, where every tensor goes.

    Raises:
      ConvertError: a tensor is missing, misshapen or of a part without a name table.
    """
    ignored = [key for key in source.tensors if _is_ignored(key)]
    tensors = {k: t for k, t in source.tensors.items() if k not in set(ignored)}
    check_owned(tensors, "the source")
    chosen = present(list(tensors))
    torch_config = dict(source.config)
    _infer_lora(torch_config, tensors)
    try:
        shapes = {key: ref.shape for key, ref in tensors.items()}
        torch_config = complete(torch_config, chosen, shapes)
    except (KeyError, IndexError, ValueError) as error:
        if isinstance(error, ConvertError):
            raise
        raise ConvertError(
            f"the configuration cannot be told from the weights ({error} is missing or odd); "
            "add the source that holds it, or give the configuration with --config"
        ) from error
    config = _padded(compose(torch_config, chosen), pad_vocab)
    rows: Rows = []
    for part in chosen:
        rows += _available(table(config, part), tensors, part)
    used = {key for row in rows for key in row.keys}
    extra = tuple(key for key in tensors if key not in used)
    if lora := [key for key in extra if ".lora_" in key]:
        raise ConvertError(f"{lora[0]}: LoRA is only supported on the projections of the llm")
    found = Plan(tensors, torch_config, config, tuple(chosen), rows, extra, tuple(ignored))
    _check_shapes(found)
    return found


def import_weights(
    sources: Sequence[Path], out: Path, *, config: Path | None = None, pad_vocab: int = 1
) -> Plan:
    """Converts and writes; `out` appears only when everything succeeded.

    Args:
      config: a configuration tree that wins over those of the sources.
      pad_vocab: zero rows are added to the vocabulary until its size is a multiple of this.

    Raises:
      ConvertError: `out` exists, or the sources are damaged, incomplete or contradictory.
    """
    check_free(out)
    plan = plan_import(open_sources(sources, config), pad_vocab)
    with fresh(out) as folder:
        return _write(plan, sources, folder)


def _write(found: Plan, sources: Sequence[Path], folder: Path) -> Plan:
    from refvlm_jax.ckpt.convert.orbax_io import Lazy, write_checkpoint

    params = {row.name: _lazy(row, found.tensors) for row in found.rows}
    extra = {
        f"{EXTRA}.{key}": Lazy(ref.shape, ref.dtype, ref.read)
        for key in found.extra
        for ref in [found.tensors[key]]
    }
    meta = {
        "config": {"name": "imported", "model": write_config(found.config)},
        "parts": [part.name for part in found.parts],
        "converter": write_notes(found.config),
        "torch_config": found.torch_config,
        "torch_dtypes": _odd_dtypes(found.rows, found.tensors),
        "sources": [path.name for path in sources],
        "train_seconds": 0.0,
    }
    folder.mkdir()
    write_checkpoint(folder, {"params": params, EXTRA: extra}, meta)
    return found


def _padded(config: WholeConfig, multiple: int) -> WholeConfig:
    padding = -config.llama.vocab_size % multiple
    return replace(config, llama=replace(config.llama, vocab_padding=padding))


def _lazy(row: Row, tensors: Tensors) -> Any:
    from refvlm_jax.ckpt.convert.orbax_io import Lazy

    dtype = row.dtype(tensors)
    return Lazy(row.shape(tensors), dtype, lambda index: row.read(tensors, index, dtype))


def _available(rows: Rows, tensors: Tensors, part: Part) -> Rows:
    """The rows whose tensors exist; a missing one that is not optional is an error."""
    found = []
    for row in rows:
        missing = [key for key in row.keys if key not in tensors]
        if not missing:
            found.append(row)
        elif not row.optional:
            raise ConvertError(
                f"{missing[0]} is missing, which {row.name} is made of; add the source that holds "
                f"it, or correct the {part.field} configuration"
            )
    return found


def _check_shapes(plan: Plan) -> None:
    """Compares names and shapes with the modules that the configuration describes."""
    from refvlm_jax.train.model_def import define

    names = {part.name for part in plan.parts}
    found = plan.shapes
    keys = {row.name: row.keys[0] for row in plan.rows}
    for part in plan.parts:
        if not names.issuperset(part.needs):
            continue  # its neighbours, which decide its shapes, are not in this source
        try:
            model = define(partial(part.module, plan.config))
        except (ValueError, IndexError, TypeError, ZeroDivisionError) as error:
            raise ConvertError(
                f"the {part.field} configuration describes no possible module: {error}"
            ) from error
        own = f"{part.name}."
        wanted = {own + n: s for n, s in model.shapes.items()}
        for name in sorted(wanted.keys() | {n for n in found if n.startswith(own)}):
            if found.get(name) != wanted.get(name):
                raise ConvertError(
                    f"{keys.get(name, 'the tensor')} makes {name} of shape {found.get(name)}, but the "
                    f"{part.field} configuration expects {wanted.get(name)}; correct its config.json"
                )


def _is_ignored(key: str) -> bool:
    part = owner(key)
    if part is None:
        return False
    own = key.removeprefix(part.prefix)
    return any(fnmatch.fnmatchcase(own, pattern) for pattern in part.ignored)


def _odd_dtypes(rows: Rows, tensors: Tensors) -> dict[str, str]:
    """Dtypes of tensors that were widened because the layers of their stack differ."""
    return {
        key: DTYPE_NAMES[tensors[key].dtype]
        for row in rows
        for key in row.keys
        if tensors[key].dtype != row.dtype(tensors)
    }


def _infer_lora(config: dict[str, Any], tensors: Tensors) -> None:
    """Fills in the rank and targets of adapters that came without adapter_config.json."""
    keys = [key for key in tensors if key.startswith("llm.") and key.endswith(".lora_A.weight")]
    if not keys:
        config.pop("llm_lora", None)
        return
    given: Mapping[str, Any] = config.get("llm_lora") or {}
    if "lora_alpha" not in given:
        raise ConvertError(
            f"{keys[0]}: the weights do not say the LoRA alpha; give --config with "
            '{"llm_lora": {"lora_alpha": ...}}'
        )
    targets = sorted({key.split(".")[-3] for key in keys})
    guess = {"r": tensors[keys[0]].shape[0], "target_modules": targets}
    config["llm_lora"] = {**guess, **given}
    if not isinstance(config["llm_lora"]["target_modules"], list):
        config["llm_lora"]["target_modules"] = targets
