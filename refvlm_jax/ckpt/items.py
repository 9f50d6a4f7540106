"""Names and shapes of checkpointed arrays, and how a checkpoint is compared with a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the tensor or folder and the remedy."""


class ArrayInfo(NamedTuple):
    """Shape and dtype of a stored array."""

    shape: tuple[int, ...]
    dtype: str


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by dotted path, for example `adam.mu.llama.embed`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(map(_entry, path)): leaf for path, leaf in leaves}


def replace_leaves(tree: Any, values: Mapping[str, Any]) -> Any:
    """`tree` with every leaf taken from `values` by its dotted path."""
    return jax.tree_util.tree_map_with_path(lambda p, _: values[".".join(map(_entry, p))], tree)


def compare(
    folder: Path, item: str, stored: Mapping[str, ArrayInfo], wanted: Mapping[str, Any]
) -> None:
    """Raises CheckpointError naming the first array that is missing, unknown or misshapen."""
    where = f"checkpoint {folder}"
    if missing := sorted(wanted.keys() - stored.keys()):
        raise CheckpointError(
            f"{where} has no {item} array {missing[0]}{_more(missing)}, which this configuration "
            f"needs with shape {tuple(wanted[missing[0]].shape)}; {_REMEDY}"
        )
    if unknown := sorted(stored.keys() - wanted.keys()):
        raise CheckpointError(
            f"{where} holds {item} array {unknown[0]}{_more(unknown)} of shape "
            f"{stored[unknown[0]].shape}, unknown to this configuration; {_REMEDY}"
        )
    for name, info in stored.items():
        if info.shape != tuple(wanted[name].shape):
            raise CheckpointError(
                f"{where}: {item} array {name} expected shape {tuple(wanted[name].shape)}, "
                f"found {info.shape}; {_REMEDY}"
            )


_REMEDY = (
    "resume with the configuration the run started with, or start a new run from its weights "
    "with ckpt.start_from"
)


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _entry(entry: Any) -> str:
    """A path entry without brackets: dictionary key, attribute name or index."""
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)
