"""The pictures of a build: decoded once, told apart by content, kept away from evaluation."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from data_pipelines.images import ImageError, load_image, orientation_and_size
from data_pipelines.records import Dialog, MediaRef
from data_pipelines.shards import ShardError
from data_pipelines.tasks import TASKS

PICTURES = "pictures.npz"
NO_PICTURE = 0
_REMEMBERED = 2_000_000  # pictures, about 300 MB
_KINDS = ("text", "objects", "referring", "grounded chat", "pose", "depth", "other")


@dataclass(frozen=True)
class Checked:
    """What decoding a picture told."""

    digest: int
    """64 bits of a hash of its pixels: the same for copies in another container."""
    problem: str = ""
    """Why it cannot be used; empty when it can."""
    code: str = "V02"
    """The rule it breaks then."""
    turned: bool = False
    """It can be used as stored, but its EXIF block says that it is to be shown turned (V22)."""


@dataclass
class Pictures:
    """Decodes every picture once and remembers the verdict."""

    root: Path
    _known: dict[tuple[str, int, int], Checked] = field(default_factory=dict)

    def check(self, image: MediaRef) -> Checked:
        """The verdict on the picture of a record."""
        key = (image.path, image.width, image.height)
        if image.data is not None:
            return self._decoded(image)
        if key not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = self._decoded(image)
        return self._known[key]

    def _decoded(self, image: MediaRef) -> Checked:
        path = self.root / image.path
        try:
            data = image.data if image.data is not None else path.read_bytes()
        except OSError as error:
            return Checked(
                NO_PICTURE, f"{path}: picture cannot be read ({error.strerror}); fetch the file"
            )
        if image.sha256 and hashlib.sha256(data).hexdigest() != image.sha256:
            return Checked(
                NO_PICTURE, f"{path}: not the picture of the record; fetch the file again"
            )
        try:
            found, (width, height) = orientation_and_size(data, image.path)
            if found > 4 and (width, height) == (image.height, image.width) and width != height:
                return Checked(
                    NO_PICTURE,
                    f"{path}: stored {width} x {height} with EXIF orientation {found}, but annotated "
                    f"as shown, {height} x {width}; turn the pixels of the file and strip its EXIF",
                    "V22",
                )
            pixels = load_image(replace(image, data=data), self.root)
        except ImageError as error:
            return Checked(NO_PICTURE, str(error))
        if (pixels == pixels[0, 0]).all():
            return Checked(
                NO_PICTURE, f"{path}: the picture is of one colour; fetch the file again"
            )
        content = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=8)
        content.update(pixels.tobytes())
        return Checked(int.from_bytes(content.digest(), "little"), turned=found != 1)


def task_kind(task_id: str) -> str:
    """Tasks that ask for the same thing about a picture, so that one gives the other away."""
    if task_id not in TASKS:
        return "other"
    command = TASKS[task_id].command
    return {
        "detection": "objects",
        "segmentation": "objects",
        "grounding_detection": "referring",
        "grounding_segmentation": "referring",
        "gcg_detection": "grounded chat",
        "gcg_segmentation": "grounded chat",
        "keypoint_detection": "pose",
        "grounding_keypoints": "pose",
        "depth": "depth",
    }.get(command, "text")


def seen_as(digest: int, dialog: Dialog) -> int:
    """Digest and kind of task in one number: what evaluation and training must not share."""
    return digest & ~7 & (2**64 - 1) | _KINDS.index(task_kind(dialog.task_id))


def save_pictures(folder: Path, seen: np.ndarray) -> None:
    """Keeps the distinct `seen_as` of a dataset beside its shards."""
    temporary = folder / f".{PICTURES}.tmp"
    with temporary.open("wb") as file:
        np.savez(file, seen=np.unique(seen))
    temporary.replace(folder / PICTURES)


def load_pictures(folder: Path) -> np.ndarray:
    """uint64[n] sorted `seen_as` of a built dataset.

    Raises:
      ShardError: the dataset has no such file.
    """
    try:
        with np.load(Path(folder) / PICTURES, allow_pickle=False) as content:
            return content["seen"]
    except (OSError, ValueError, KeyError) as error:
        raise ShardError(
            f"{Path(folder) / PICTURES}: cannot be read ({error}); give the folder of a dataset "
            "built by `refvlm data build`, or build it again"
        ) from None


def held_out(folders: Iterable[str]) -> frozenset[int]:
    """`seen_as` of all pictures of built evaluation datasets."""
    return frozenset(int(k) for folder in folders for k in load_pictures(Path(folder)))
