"""What the converter knows of one part of the model, and the registry of all parts.

A part is one module of `refvlm_jax.ckpt.convert.parts` with a `PART`; adding the file registers it.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from refvlm_jax.ckpt.convert.names import Rows
from refvlm_jax.ckpt.convert.tensors import ConvertError, Shape

if TYPE_CHECKING:
    from flax import nnx

    from refvlm_jax.ckpt.convert.whole import WholeConfig

TorchConfig = Mapping[str, Any]
"""A module's configuration under its PyTorch field names."""
_REQUIRED = object()


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of the model in both worlds."""

    name: str
    """Prefix of our dotted names."""
    field: str
    """Dotted place of its PyTorch configuration, also the prefix of its keys in a training
    checkpoint: `visual_decoder.box`."""
    folder: str
    """Its folder in an export; empty is the root."""
    model_types: tuple[str, ...]
    """`model_type` of its config.json; the first one is written."""
    architectures: tuple[str, ...]
    """Class names written to config.json."""
    attribute: str
    """Field of `WholeConfig` that it fills."""
    order: int
    """Its place in the forward pass."""
    read: Callable[[TorchConfig, TorchConfig], Any]
    """(its PyTorch configuration, that of the whole model) -> value of `attribute`."""
    write: Callable[["WholeConfig"], dict[str, Any]]
    """Its PyTorch configuration; raises ConvertError if PyTorch has none."""
    rows: Callable[["WholeConfig"], Rows]
    """The name table, both sides without prefix."""
    module: Callable[["WholeConfig", "nnx.Rngs"], "nnx.Module"]
    """Constructs it."""
    infer: Callable[[Mapping[str, Shape]], dict[str, Any]]
    """Shapes by key without prefix -> PyTorch configuration as far as released models share it."""
    ignored: tuple[str, ...] = ()
    """Patterns of keys, without prefix, that belong to other models or are recomputed."""
    needs: tuple[str, ...] = ()
    """Parts without which its shapes are not defined."""
    sizes_from_weights: bool = False
    """Configurations that come with its released weights do not hold its sizes."""
    inner: tuple[str, ...] = ()
    """Prefixes, below its own, of the keys it claims from a part of the same prefix; empty: all."""

    @property
    def prefix(self) -> str:
        """Prefix of its keys in a training checkpoint."""
        return f"{self.field}."

    @property
    def claims(self) -> tuple[str, ...]:
        """Full prefixes of the keys that are its own."""
        return tuple(self.prefix + inner for inner in self.inner) or (self.prefix,)


@dataclass(frozen=True)
class Foreign:
    """A part of released models that this version has no module for."""

    what: str
    prefixes: tuple[str, ...]
    """Prefixes of its keys in a training checkpoint."""


FOREIGN = (Foreign("the depth decoder", ("visual_decoder.depth.",)),)
"""Most of them never ran in PyTorch."""


@cache
def parts() -> tuple[Part, ...]:
    """All registered parts, in the order of the forward pass."""
    from refvlm_jax.ckpt.convert import parts as package

    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__))
    found = [importlib.import_module(f"{package.__name__}.{name}").PART for name in names]
    return tuple(sorted(found, key=lambda part: part.order))


def owner(key: str) -> Part | None:
    """The registered part a PyTorch key belongs to: the longest matching prefix."""
    best, length = None, 0
    for part in parts():
        for claim in part.claims:
            if key.startswith(claim) and len(claim) > length:
                best, length = part, len(claim)
    for foreign in FOREIGN:
        if any(key.startswith(p) and len(p) > length for p in foreign.prefixes):
            return None
    return best


def check_owned(keys: Iterable[str], where: object) -> None:
    """Raises ConvertError if a key belongs to a part without a table, naming the part."""
    unknown = [key for key in keys if owner(key) is None]
    if not unknown:
        return
    names = {f.what: p for f in FOREIGN for p in f.prefixes if unknown[0].startswith(p)}
    known = ", ".join(part.prefix + "*" for part in parts())
    if names:
        raise ConvertError(
            f"{where} holds {next(iter(names))} ({unknown[0]}; {len(unknown)} tensors in all), "
            f"which has no name table in this version; registered parts: {known}"
        )
    raise ConvertError(
        f"{where}: {unknown[0]} belongs to no known part ({len(unknown)} such tensors); "
        f"expected keys: {known}"
    )


def part_for_type(model_type: str) -> Part | None:
    """The part whose config.json has this `model_type`."""
    return next((part for part in parts() if model_type in part.model_types), None)


class Fields:
    """Reads a PyTorch configuration; every complaint names the part and the field."""

    def __init__(self, where: str, config: TorchConfig):
        self._where, self._config = where, config

    def get(self, name: str, default: Any = _REQUIRED, kind: type | tuple[type, ...] = int) -> Any:
        """The value of a field, checked for its type."""
        value = self._config.get(name, default)
        if value is _REQUIRED:
            raise ConvertError(
                f"{self._where} configuration lacks {name}; add it to its config.json"
            )
        if value is not None and (
            not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        ):
            raise ConvertError(f"{self._where}: {name} = {value!r} has the wrong type")
        return value

    def only(self, name: str, *allowed: Any, default: Any = None) -> Any:
        """The value of a field that has to be one of `allowed`."""
        value = self._config.get(name, allowed[0] if default is None else default)
        if value not in allowed:
            raise ConvertError(
                f"{self._where}: {name} = {value!r} is not supported; expected "
                + " or ".join(map(repr, allowed))
            )
        return value


def at(config: TorchConfig, field: str) -> TorchConfig | None:
    """The configuration at a dotted place; None if absent."""
    node: Any = config
    for name in field.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node if isinstance(node, Mapping) else None


def put(config: dict[str, Any], field: str, value: TorchConfig) -> None:
    """Sets the configuration at a dotted place."""
    *parents, last = field.split(".")
    for name in parents:
        if not isinstance(config.get(name), dict):
            config[name] = {}
        config = config[name]
    config[last] = dict(value)


def count(shapes: Mapping[str, Shape], prefix: str) -> int:
    """How many numbered layers stand directly under `prefix`."""
    found = {k[len(prefix) :].split(".")[0] for k in shapes if k.startswith(prefix)}
    return len([n for n in found if n.isdigit()])
