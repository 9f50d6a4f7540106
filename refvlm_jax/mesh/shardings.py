"""Where every parameter and optimiser leaf lives, from logical axes and rules."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from refvlm_jax.mesh.rules import ShardingRules

_LOG = logging.getLogger(__name__)


def param_shardings(
    shapes: Mapping[str, tuple[int, ...]],
    axes: Mapping[str, Sequence[str | None]],
    mesh: Mesh,
    rules: ShardingRules,
) -> dict[str, NamedSharding]:
    """Layout of every named parameter.

    A dimension that its mesh axes do not divide stays whole; one warning lists those parameters.
    """
    specs = {name: rules.spec(axes[name]) for name in shapes}
    fitted = {name: fit_spec(specs[name], shapes[name], mesh) for name in shapes}
    if uneven := [f"{n} {shapes[n]}" for n in shapes if fitted[n] != specs[n]]:
        _LOG.warning("not divisible by the mesh, kept whole along a dimension: %s", uneven)
    return {name: NamedSharding(mesh, spec) for name, spec in fitted.items()}


def fit_spec(spec: PartitionSpec, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """`spec` with the entries dropped that do not divide their dimension."""
    return PartitionSpec(
        *(e if n % _size(e, mesh) == 0 else None for e, n in zip(spec, shape, strict=True))
    )


def like_params(
    tree: Any,
    shardings: Mapping[str, NamedSharding],
    shapes: Mapping[str, tuple[int, ...]],
    mesh: Mesh,
) -> Any:
    """Abstract `tree` with a sharding on every leaf.

    A leaf stored under a parameter's name with its shape (a moment) is laid out like the parameter,
    anything else (step counts) is replicated. A leaf without a mesh sharding would be restored to
    one device and then clash with the others.
    """
    whole = NamedSharding(mesh, PartitionSpec())

    def place(path: tuple[Any, ...], leaf: Any) -> jax.ShapeDtypeStruct:
        name = str(getattr(path[-1], "key", "")) if path else ""
        sharding = shardings[name] if shapes.get(name) == leaf.shape else whole
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, tree)


def _size(entry: Any, mesh: Mesh) -> int:
    axes = () if entry is None else (entry,) if isinstance(entry, str) else entry
    return math.prod(mesh.shape[axis] for axis in axes)
