"""Sizes of pictures that their annotations do not tell."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from PIL import Image

from data_pipelines.records import MediaRef
from data_pipelines.sources.base import RecordError, picture

Sizes = Mapping[str, tuple[int, int]]
"""Width and height by file name relative to the folder of the pictures."""


class PictureSizes(Sizes):
    """Known sizes first, then the header of the picture itself, read once.

    Iteration and length cover the known sizes only.
    """

    def __init__(self, folder: Path, known: Sizes | None = None):
        self.folder = Path(folder)
        self.known = dict(known or {})
        self._read: dict[str, tuple[int, int] | None] = {}

    def __getitem__(self, name: str) -> tuple[int, int]:
        if name in self.known:
            return self.known[name]
        if name not in self._read:
            self._read[name] = _header(self.folder / name)
        if (size := self._read[name]) is None:
            raise KeyError(name)
        return size

    def __iter__(self) -> Iterator[str]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


def _header(path: Path) -> tuple[int, int] | None:
    try:
        with Image.open(path) as image:
            return image.size
    except Exception:  # Pillow's readers raise many unrelated types on damaged files
        return None


def sized_picture(name: str, folder: str, sizes: Sizes) -> MediaRef:
    """The picture `name` of `folder` with its size from `sizes`; RecordError V02 when unknown."""
    if not isinstance(name, str) or name not in sizes:
        raise RecordError(
            "V02", f"picture {name!r} is neither listed nor readable; add it or drop the record"
        )
    return picture(name, folder, *sizes[name])
