"""Pickles from outside: plain containers only, so that nothing in the file can run."""

import io
import pickle
from pathlib import Path
from typing import Any

from data_pipelines.sources.base import SourceError


class _Plain(pickle._Unpickler):  # type: ignore[name-defined]
    """Knows lists, tuples, dicts, sets, strings, bytes and numbers, and no class by name.

    The unpickler written in Python, because the other one allocates whatever a file claims to hold.
    """

    dispatch = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()  # type: ignore[attr-defined]
        if code != pickle.BYTEARRAY8[0]
    }

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_pickle(path: Path) -> Any:
    """The plain containers of a pickle; strings of Python 2 are read as UTF-8, else as Latin-1.

    Raises:
      SourceError: missing, damaged, or a pickle that asks for any class or function.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        remedy = "see data_pipelines/sources/README.md"
        raise SourceError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    try:
        return _load(path, data, "utf-8")
    except UnicodeDecodeError:
        return _load(path, data, "latin-1")


def _load(path: Path, data: bytes, encoding: str) -> Any:
    try:
        return _Plain(io.BytesIO(data), encoding=encoding).load()
    except UnicodeDecodeError:
        raise
    except pickle.UnpicklingError as error:
        text = " ".join(str(error).split())
        raise SourceError(
            f"{path}: refused, {text}; only plain lists, dicts, strings and numbers are read: "
            "get the published file"
        ) from None
    except Exception as error:  # a damaged pickle raises nearly anything
        kind = type(error).__name__
        text = " ".join(str(error).split())
        raise SourceError(f"{path}: damaged pickle ({kind}: {text}); download it again") from None
