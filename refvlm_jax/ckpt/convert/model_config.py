"""From the PyTorch configuration of every part to one `RefVLMConfig`, and back."""

import typing
from collections.abc import Mapping, Sequence
from typing import Any

from refvlm_jax.ckpt.convert.names import Rows, prefixed
from refvlm_jax.ckpt.convert.part import Part, TorchConfig, at, owner, parts, put
from refvlm_jax.ckpt.convert.tensors import Shape
from refvlm_jax.config.model import RefVLMConfig


def present(keys: Sequence[str]) -> list[Part]:
    """The parts that the keys belong to, in the order of the forward pass."""
    found = {part.name for key in keys if (part := owner(key)) is not None}
    return [part for part in parts() if part.name in found]


def complete(config: TorchConfig, chosen: Sequence[Part], shapes: Mapping[str, Shape]) -> dict:
    """`config` with the parts it lacks inferred from the shapes of their weights."""
    found: dict[str, Any] = dict(config)
    for part in chosen:
        if at(found, part.field) is None:
            own = {
                k.removeprefix(part.prefix): s for k, s in shapes.items() if owner(k) is part
            }
            put(found, part.field, part.infer(own))
    return found


def compose(config: TorchConfig, chosen: Sequence[Part]) -> RefVLMConfig:
    """The model of these parts; optional parts that are not among them are absent."""
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(RefVLMConfig)
    for part in parts():
        if part in chosen:
            values[part.attribute] = part.read(at(config, part.field) or {}, config)
        elif type(None) in typing.get_args(hints[part.attribute]):
            values[part.attribute] = None
    return RefVLMConfig(**values)


def table(config: RefVLMConfig, part: Part) -> Rows:
    """The name table of a part with full names on both sides."""
    return prefixed(part.rows(config), f"{part.name}.", part.prefix)
