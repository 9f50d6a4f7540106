"""From the PyTorch configuration of every part to one `WholeConfig`, and back."""

import copy
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from refvlm_jax.ckpt.convert.names import Rows, prefixed
from refvlm_jax.ckpt.convert.part import Part, TorchConfig, at, owner, parts, put
from refvlm_jax.ckpt.convert.tensors import ConvertError, Shape
from refvlm_jax.ckpt.convert.whole import WholeConfig


def present(keys: Sequence[str]) -> list[Part]:
    """The parts that the keys belong to, in the order of the forward pass."""
    found = {part.name for key in keys if (part := owner(key)) is not None}
    return [part for part in parts() if part.name in found]


def complete(config: TorchConfig, chosen: Sequence[Part], shapes: Mapping[str, Shape]) -> dict:
    """`config` with the parts it lacks inferred from the shapes of their weights."""
    found: dict[str, Any] = copy.deepcopy(dict(config))
    for part in chosen:
        given = at(found, part.field)
        if given is None or part.sizes_from_weights:
            own = {k.removeprefix(part.prefix): s for k, s in shapes.items() if owner(k) is part}
            put(found, part.field, {**part.infer(own), **(given or {})})
    return found


def compose(config: TorchConfig, chosen: Sequence[Part]) -> WholeConfig:
    """The model of these parts; optional parts that are not among them are absent."""
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(WholeConfig)
    for part in parts():
        if part in chosen:
            values[part.attribute] = part.read(at(config, part.field) or {}, config)
        elif type(None) in typing.get_args(hints[part.attribute]):
            values.setdefault(part.attribute, None)
    whole = WholeConfig(**values)
    if not any(part.name == "llama" for part in chosen):
        whole = replace(whole, query_dim=_query_dim(config.get("visual_decoder")))
    return replace(whole, map_dims=_map_dims(config, whole))


def _query_dim(decoders: Any) -> int | None:
    """What the decoders say of the language model's width."""
    for name in ("box", "mask", "pose"):
        node = decoders.get(name) if isinstance(decoders, Mapping) else None
        for tree in (node, (node or {}).get("box_config")):
            if isinstance(tree, Mapping) and isinstance(tree.get("quries_input_dim"), int):
                return tree["quries_input_dim"]
    return None


def _map_dims(config: TorchConfig, whole: WholeConfig) -> tuple[int, ...] | None:
    """Channels of the feature maps as the decoders give them; None where the parts say the same."""
    natural = whole.unit_dims
    known: dict[int, int] = {}
    for where, index, dim in _inputs(config.get("visual_decoder"), "visual_decoder"):
        if known.setdefault(index, dim) != dim:
            raise ConvertError(
                f"{where}: encoder_input_dim gives feature map {index} {dim} channels, another "
                f"decoder {known[index]}; correct one config.json"
            )
    if all(0 <= i < len(natural) and natural[i] == dim for i, dim in known.items()):
        return None
    dims = [whole.vision.width] * (max(known) + 1)
    for index, dim in known.items():
        dims[index] = dim
    return tuple(dims)


def _inputs(node: Any, where: str) -> Iterator[tuple[str, int, int]]:
    """(decoder, feature map, channels) of every decoder under a configuration node."""
    if not isinstance(node, Mapping):
        return
    index, dims = node.get("encoder_input_index"), node.get("encoder_input_dim")
    if isinstance(index, (list, tuple)) and isinstance(dims, (list, tuple)):
        if len(index) != len(dims):
            raise ConvertError(
                f"{where}: encoder_input_index has {len(index)} entries, encoder_input_dim "
                f"{len(dims)}; correct its config.json"
            )
        yield from ((where, i, d) for i, d in zip(index, dims, strict=True))
    for name, inner in node.items():
        yield from _inputs(inner, f"{where}.{name}")


def table(config: WholeConfig, part: Part) -> Rows:
    """The name table of a part with full names on both sides."""
    return prefixed(part.rows(config), f"{part.name}.", part.prefix)
