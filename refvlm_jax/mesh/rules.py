"""Logical axes and the rules that map them to mesh axes.

A parameter or activation names its dimensions once, with a field of `ShardingRules`; a preset decides
where those dimensions live. A misspelt axis is an AttributeError, a mesh axis used twice by one
array is a ValueError, both before anything is compiled.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("replica", "fsdp", "seq", "tensor")
MeshAxes = str | tuple[str, ...] | None
Axes = Sequence[str | None]
"""Logical axes of an array's dimensions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardingRules:
    """Mesh axes of every logical axis; None replicates."""

    # Parameters.
    embed: MeshAxes = None
    heads: MeshAxes = None
    kv_heads: MeshAxes = None
    head_dim: MeshAxes = None
    mlp: MeshAxes = None
    vocab: MeshAxes = None
    vision_embed: MeshAxes = None
    conv_in: MeshAxes = None
    conv_out: MeshAxes = None
    unit_embed: MeshAxes = None
    """Unit decoders are small: replicated by default."""
    norm: MeshAxes = None
    layers: MeshAxes = None
    position: MeshAxes = None
    rank: MeshAxes = None
    """Of a LoRA factor whose other end is `embed`."""
    outer_rank: MeshAxes = None
    """Of the other factors, which nothing else would spread."""
    # Activations.
    batch: MeshAxes = None
    image: MeshAxes = None
    """Image batch of the frozen towers: data-parallel over every chip."""
    length: MeshAxes = None
    act_embed: MeshAxes = None
    act_heads: MeshAxes = None
    act_mlp: MeshAxes = None
    act_vocab: MeshAxes = None
    unit: MeshAxes = None

    def spec(self, axes: Sequence[str | None]) -> PartitionSpec:
        """PartitionSpec of an array whose dimensions carry these logical axes.

        Raises:
          AttributeError: unknown logical axis.
          ValueError: two dimensions would use the same mesh axis.
        """
        entries = tuple(None if axis is None else getattr(self, axis) for axis in axes)
        flat = [m for e in entries if e for m in ((e,) if isinstance(e, str) else e)]
        if len(flat) != len(set(flat)):
            raise ValueError(f"logical axes {tuple(axes)} use a mesh axis twice: {entries}")
        return PartitionSpec(*entries)


_FSDP = ShardingRules(
    embed="fsdp",
    vision_embed="fsdp",
    conv_out="fsdp",
    outer_rank="fsdp",
    batch=("replica", "fsdp"),
    image=("replica", "fsdp", "seq", "tensor"),
    unit=("replica", "fsdp"),
)
_TENSOR = dict(
    heads="tensor",
    kv_heads="tensor",
    mlp="tensor",
    vocab="tensor",
    act_heads="tensor",
    act_mlp="tensor",
    act_vocab="tensor",
)

PRESETS: dict[str, ShardingRules] = {
    "single": ShardingRules(),
    "fsdp": _FSDP,
    "hsdp": _FSDP,
    "fsdp_tp": dataclasses.replace(_FSDP, **_TENSOR),
    "fsdp_seq": dataclasses.replace(_FSDP, length="seq"),
}

_ACTIVE: contextvars.ContextVar[tuple[Mesh, ShardingRules] | None] = contextvars.ContextVar(
    "refvlm_sharding", default=None
)


@contextlib.contextmanager
def use_sharding(mesh: Mesh, rules: ShardingRules) -> Iterator[None]:
    """Makes `constrain` effective while a function is traced."""
    token = _ACTIVE.set((mesh, rules))
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def is_divided() -> bool:
    """Whether what is traced now runs on several devices."""
    return (active := _ACTIVE.get()) is not None and active[0].size > 1


def on_shards(
    run: Callable[..., jax.Array], inputs: Sequence[Axes], output: Axes
) -> Callable[..., jax.Array]:
    """`run` on the part of its arguments that each device holds; itself without a mesh.

    Args:
      inputs: logical axes of every argument; its dimensions must divide over the mesh.
      output: logical axes of the result.
    """
    if (active := _ACTIVE.get()) is None:
        return run
    mesh, rules = active
    specs = tuple(rules.spec(axes) for axes in inputs)
    return jax.shard_map(
        run, mesh=mesh, in_specs=specs, out_specs=rules.spec(output), check_vma=False
    )


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins the layout of an activation whose dimensions carry `axes`; identity without a mesh."""
    if (active := _ACTIVE.get()) is None:
        return x
    mesh, rules = active
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, rules.spec(axes)))
