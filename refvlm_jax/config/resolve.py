"""From recipe files and overrides to a checked `RunConfig`; never touches a device.

Public: `resolve`, `load_config`, `to_dict`, `diff`, `fingerprint`, `ConfigError`.
"""

import ast
import dataclasses
import difflib
import hashlib
import importlib.util
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from refvlm_jax.config.check import check
from refvlm_jax.config.errors import ConfigError
from refvlm_jax.config.schema import RunConfig

T = TypeVar("T")


def resolve(tree: Any) -> RunConfig:
    """Builds a checked run configuration from a ConfigDict or nested mapping.

    Raises:
      ConfigError: unknown key, missing field, wrong type or impossible value, naming the field.
    """
    config = build(RunConfig, _plain(tree))
    check(config)
    return config


def build(cls: type[T], tree: Mapping[str, Any], path: str = "") -> T:
    """Builds dataclass `cls` from a mapping, recursively; `path` prefixes names in errors."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in tree:
        if key not in fields:
            raise ConfigError(_unknown(path + str(key), str(key), list(fields)))
    missing = [n for n, f in fields.items() if n not in tree and _required(f)]
    if missing:
        raise ConfigError(f"{path}{missing[0]} is required and has no default; set it")
    return cls(**{k: _convert(v, hints[k], f"{path}{k}") for k, v in tree.items()})


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Runs `get_config()` of a recipe file, applies `a.b=value` overrides and resolves the result.

    A recipe that takes an argument is given as `file.py:argument`. Override values are Python
    literals; anything that is not one is a string.
    """
    tree = _plain(_recipe(str(path)))
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator or not name:
            raise ConfigError(f"override {override!r} is not of the form field.name=value")
        _assign(tree, name.strip(), _literal(text.strip()))
    return resolve(tree)


def to_dict(config: Any) -> dict[str, Any]:
    """Nested JSON-ready dictionary of a configuration dataclass (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def diff(
    a: RunConfig | Mapping[str, Any], b: RunConfig | Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> (value in `a`, value in `b`) where they differ; None for an absent field."""
    left, right = (_flatten(x if isinstance(x, Mapping) else to_dict(x)) for x in (a, b))
    names = sorted(left.keys() | right.keys())
    return {n: (left.get(n), right.get(n)) for n in names if left.get(n) != right.get(n)}


def fingerprint(config: RunConfig) -> str:
    """Short hash of all values, equal for equal configurations."""
    text = json.dumps(to_dict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _unknown(dotted: str, key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f'did you mean "{close[0]}"?' if close else f"known fields: {', '.join(known)}"
    return f"{dotted} is not a configuration field; {hint}"


def _convert(value: Any, hint: Any, path: str) -> Any:
    """`value` as the annotated type, or a ConfigError."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        (inner,) = (a for a in args if a is not type(None))
        return _convert(value, inner, path)
    if origin is typing.Literal:
        return _choice(value, args, path)
    if origin is tuple:
        return _sequence(value, args, path)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _expect(isinstance(value, Mapping), path, "a mapping", value)
        return {str(k): _convert(v, args[1], f"{path}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        _expect(isinstance(value, Mapping), path, f"a mapping of {hint.__name__} fields", value)  # type: ignore[union-attr]
        return build(hint, value, f"{path}.")  # type: ignore[arg-type]
    return _scalar(value, hint, path)


def _choice(value: Any, choices: tuple[Any, ...], path: str) -> Any:
    if value in choices:
        return value
    close = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1, cutoff=0.5)
    hint = f'; did you mean "{close[0]}"?' if close else ""
    raise ConfigError(f"{path} = {value!r} is not one of {', '.join(map(repr, choices))}{hint}")


def _sequence(value: Any, args: tuple[Any, ...], path: str) -> tuple[Any, ...]:
    _expect(isinstance(value, list | tuple), path, "a list", value)
    if args[-1] is Ellipsis:
        args = (args[0],) * len(value)
    elif len(value) != len(args):
        raise ConfigError(f"{path} has {len(value)} entries, expected {len(args)}")
    pairs = enumerate(zip(value, args, strict=True))
    return tuple(_convert(v, a, f"{path}[{i}]") for i, (v, a) in pairs)


def _scalar(value: Any, hint: type, path: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is an int in Python; `steps = True` is a mistake all the same.
    matches = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    _expect(matches, path, {"str": "a string", "int": "an integer"}.get(hint.__name__), value, hint)
    return value


def _expect(ok: bool, path: str, what: str | None, value: Any, hint: type | None = None) -> None:
    if not ok:
        wanted = what or f"a {hint.__name__}"  # type: ignore[union-attr]
        raise ConfigError(f"{path} must be {wanted}, got {value!r} ({type(value).__name__})")


def _recipe(path: str) -> Mapping[str, Any]:
    name, _, argument = path.partition(":")
    file = Path(name)
    if not file.is_file():
        raise ConfigError(f"configuration file {name} does not exist")
    spec = importlib.util.spec_from_file_location(f"refvlm_recipe_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{name} failed to run: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, "get_config", None)):
        raise ConfigError(f"{name} defines no get_config(); a recipe returns its tree from it")
    return module.get_config(argument) if argument else module.get_config()


def _plain(tree: Any) -> Any:
    """Mutable nested dictionaries of a ConfigDict, mapping or dataclass tree."""
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return to_dict(tree)
    if hasattr(tree, "to_dict"):  # a ConfigDict is no Mapping
        tree = tree.to_dict()
    if isinstance(tree, Mapping):
        return {k: _plain(v) for k, v in tree.items()}
    return [_plain(v) for v in tree] if isinstance(tree, list | tuple) else tree


def _assign(tree: dict[str, Any], name: str, value: Any) -> None:
    *parents, last = name.split(".")
    node = tree
    for depth, key in enumerate(parents):
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            parent = ".".join(parents[: depth + 1])
            raise ConfigError(
                f"{name} cannot be set: {parent} is {node!r}; set {parent}={{}} first"
            )
    node[last] = value


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
