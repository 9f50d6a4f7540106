"""Strict readers of JSON values: every error names the field and what was expected."""

import contextlib
import math
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
Reader = Callable[[Any, str], T]

_REQUIRED = object()


class Fields:
    """A JSON object whose fields are taken one by one; what is left over is an error.

    Args:
      value: the parsed object.
      where: its own name, for messages; empty for the record itself.
    """

    def __init__(self, value: Any, where: str = ""):
        if not isinstance(value, dict):
            raise ValueError(f"{where or 'record'} is {_shown(value)}; expected an object")
        self._left, self._where = dict(value), where

    def take(self, name: str, reader: Reader[T], default: Any = _REQUIRED) -> T:
        """Reads one field; without a default it must be there."""
        where = f"{self._where}.{name}" if self._where else name
        if name not in self._left:
            if default is _REQUIRED:
                raise ValueError(f"field {where} is missing")
            return default
        return reader(self._left.pop(name), where)

    def done(self) -> None:
        """Refuses fields that nobody took: most likely misspelt."""
        if self._left:
            names = ", ".join(sorted(self._left))
            raise ValueError(f"unknown field {names} in {self._where or 'the record'}; remove it")


def text(value: Any, where: str) -> str:
    """A string."""
    if not isinstance(value, str):
        raise ValueError(f"{where} is {_shown(value)}; expected a string")
    return value


def whole(value: Any, where: str) -> int:
    """An integer of at least 0."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{where} is {_shown(value)}; expected a whole number of at least 0")
    return value


def whole_or_text(value: Any, where: str) -> int | str:
    """A string, or an integer of at least 0."""
    return value if isinstance(value, str) else whole(value, where)


def positive(value: Any, where: str) -> int:
    """An integer of at least 1."""
    if whole(value, where) < 1:
        raise ValueError(f"{where} is 0; expected at least 1")
    return value


def number(value: Any, where: str) -> float:
    """A finite number."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer beyond every float
            if math.isfinite(float(value)):
                return float(value)
    raise ValueError(f"{where} is {_shown(value)}; expected a finite number")


def one_of(*options: str) -> Reader[str]:
    """One of several strings."""

    def read(value: Any, where: str) -> str:
        if value not in options:
            raise ValueError(f"{where} is {_shown(value)}; expected one of {', '.join(options)}")
        return value

    return read


def list_of(reader: Reader[T], length: int | None = None) -> Reader[list[T]]:
    """A list whose items `reader` understands, of a fixed length if one is given."""

    def read(value: Any, where: str) -> list[T]:
        if not isinstance(value, list) or (length is not None and len(value) != length):
            count = "a list" if length is None else f"a list of {length}"
            raise ValueError(f"{where} is {_shown(value)}; expected {count}")
        return [reader(item, f"{where}[{k}]") for k, item in enumerate(value)]

    return read


def optional(reader: Reader[T]) -> Reader[T | None]:
    """Null, or what `reader` understands."""
    return lambda value, where: None if value is None else reader(value, where)


def map_of(reader: Reader[T]) -> Reader[dict[str, T]]:
    """An object with free keys whose values `reader` understands."""

    def read(value: Any, where: str) -> dict[str, T]:
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {_shown(value)}; expected an object")
        return {key: reader(item, f"{where}.{key}") for key, item in value.items()}

    return read


def anything(value: Any, where: str) -> Any:
    """Any JSON value."""
    return value


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
