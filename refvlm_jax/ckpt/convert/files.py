"""Results that appear whole or not at all: written aside, then renamed."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

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


class Write(Protocol):
    """A write that was started: a future of `concurrent.futures` or of TensorStore."""

    def result(self) -> Any:
        """Waits for it; raises what it failed with."""
        ...


class OneBehind:
    """Writes one thing while the caller prepares the next, and never holds more.

    Leaving the block waits for the last write, so that no write outlives the file it goes to.
    """

    def __init__(self) -> None:
        self._running: Write | None = None

    def start(self, write: Callable[..., Write], *args: Any) -> None:
        """Calls `write(*args)`, which starts a write, once the one before has ended.

        Raises: whatever the write before failed with.
        """
        self._wait()
        self._running = write(*args)

    def _wait(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._wait()
        else:
            with contextlib.suppress(Exception):  # the first error is the one to report
                self._wait()


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
