"""Results that appear whole or not at all: written aside, then renamed."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from refvlm_jax.ckpt.convert.tensors import ConvertError


def check_free(out: Path) -> None:
    """Raises ConvertError if something other than an empty folder is at `out`."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConvertError(f"{out} exists already; remove it or choose another place")


@contextlib.contextmanager
def fresh(out: Path) -> Iterator[Path]:
    """A path beside `out` to write a folder or file to; becomes `out` if nothing fails.

    Raises:
      ConvertError: `out` exists and is not an empty folder.
    """
    check_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    _remove(partial)
    try:
        yield partial
        if out.is_dir():
            out.rmdir()
        os.replace(partial, out)
    finally:
        _remove(partial)


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    """Writes or replaces a JSON file in one step."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
