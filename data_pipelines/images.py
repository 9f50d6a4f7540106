"""Pictures: strict decoding to RGB, and the padded square the towers see."""

import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from data_pipelines.records import MediaRef

PAD_COLOUR = (122, 116, 104)  # CLIP mean in 0..255, truncated
MIN_SIDE = 16
MAX_PIXELS = 120_000_000  # beyond it a header is taken for an attack on memory
_EXIF_ORIENTATION = 0x0112


class ImageError(ValueError):
    """A picture cannot be used; the message names the file and the remedy."""


def load_image(media: MediaRef, root: Path) -> np.ndarray:
    """uint8[H, W, 3] RGB of a record's picture, from its own bytes or from `root / media.path`.

    The EXIF orientation is not applied: annotations are in stored pixels (see `exif_orientation`).

    Raises:
      ImageError: missing, cut, undecodable, too large or too small, or of another size than the
        record says.
    """
    data = media.data if media.data is not None else _read(Path(root) / media.path)
    with _open(data, media.path) as image:
        _check_size(image, media)
        return np.array(_decode(image, media.path))


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How pictures become squares. Part of what a run trains on: never chosen by what is installed."""

    jpeg: Literal["pillow", "simplejpeg"] = "pillow"
    """Who decodes JPEG files; both use libjpeg-turbo, but not the same version."""
    scaled: bool = False
    """Large JPEG pictures are decoded at a half, a quarter or an eighth of their size, the smallest
    whose long side is still twice the square's."""

    def __post_init__(self) -> None:
        if self.jpeg == "simplejpeg" and importlib.util.find_spec("simplejpeg") is None:
            raise ValueError(
                "data.jpeg is simplejpeg, which is not installed; "
                "install refvlm_jax[jpeg] or set data.jpeg to pillow"
            )


def load_square(media: MediaRef, root: Path, size: int, decoding: Decoding) -> np.ndarray:
    """`to_square` of `load_image`, decoded as asked; raises ImageError as `load_image` does."""
    return square_of(load_scaled(media, root, size, decoding), size)


def load_scaled(media: MediaRef, root: Path, size: int, decoding: Decoding) -> Image.Image:
    """`load_image`, but at least `2 size` on the long side where `decoding.scaled` allows."""
    data = media.data if media.data is not None else _read(Path(root) / media.path)
    factor = _factor(media, size) if decoding.scaled else 1
    with _open(data, media.path) as image:
        _check_size(image, media)
        if image.format != "JPEG" or image.mode != "RGB":
            return _decode(image, media.path)
        shape = (media.height // factor, media.width // factor)
        if decoding.jpeg == "simplejpeg":
            return Image.fromarray(_decode_simplejpeg(data, media.path, shape))
        if factor > 1:
            image.draft("RGB", (shape[1], shape[0]))
        return _decode(image, media.path)


def _factor(media: MediaRef, size: int) -> int:
    side = max(media.width, media.height)
    return next((factor for factor in (8, 4, 2) if side >= 2 * size * factor), 1)


def _decode_simplejpeg(data: bytes, name: str, shape: tuple[int, int]) -> np.ndarray:
    import simplejpeg

    height, width = shape
    try:
        # Pillow's defaults: exact transform, smooth chroma; a damaged stream is an error.
        return simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, strict=True)
    except ValueError as error:
        raise ImageError(
            f"{name}: damaged or cut picture ({error}); fetch the file again or drop the record"
        ) from error


def exif_orientation(path: Path) -> int:
    """EXIF orientation 1..8 of a file; 1 (upright) when it has none.

    Raises:
      ImageError: missing or not a picture.
    """
    return orientation_and_size(_read(Path(path)), str(path))[0]


def orientation_and_size(data: bytes, name: str) -> tuple[int, tuple[int, int]]:
    """EXIF orientation of encoded bytes, and width and height as they are stored.

    Raises:
      ImageError: not a picture; `name` stands for it.
    """
    with _open(data, name) as image:
        try:
            value = image.getexif().get(_EXIF_ORIENTATION, 1)
        except Exception:  # a damaged EXIF block says nothing about orientation
            value = 1
        return (value if value in range(1, 9) else 1), image.size


def to_square(image: np.ndarray, size: int) -> np.ndarray:
    """uint8[size, size, 3]: the picture centred on a square of `PAD_COLOUR`, then bicubic."""
    return square_of(Image.fromarray(image), size)


def square_of(square: Image.Image, size: int) -> np.ndarray:
    """`to_square` of a picture of Pillow's."""
    width, height = square.size
    side = max(width, height)
    if width != height:
        canvas = Image.new("RGB", (side, side), PAD_COLOUR)
        canvas.paste(square, ((side - width) // 2, (side - height) // 2))
        square = canvas
    return np.array(square.resize((size, size), Image.Resampling.BICUBIC))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(
            f"{path}: picture cannot be read ({error.strerror}); check the image root and the path"
        ) from error


def _open(data: bytes, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: {error}; shrink the picture or drop the record") from error
    except Exception as error:  # Pillow's readers raise many unrelated types on damaged files
        raise ImageError(
            f"{name}: not a picture ({len(data)} bytes, {type(error).__name__}); "
            "fetch the file again or drop the record"
        ) from error


def _check_size(image: Image.Image, media: MediaRef) -> None:
    width, height = image.size
    if (width, height) != (media.width, media.height):
        raise ImageError(
            f"{media.path}: picture is {width} x {height}, the record says "
            f"{media.width} x {media.height}; rebuild the record from this file"
        )
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"{media.path}: {width} x {height} is too small, sides start at {MIN_SIDE}; "
            "drop the record"
        )
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{media.path}: {width} x {height} exceeds {MAX_PIXELS} pixels; "
            "shrink the picture or drop the record"
        )


def _decode(image: Image.Image, name: str) -> Image.Image:
    try:
        return image.convert("RGB")
    except Exception as error:  # Pillow's readers raise many unrelated types on damaged files
        raise ImageError(
            f"{name}: damaged or cut picture ({error}); fetch the file again or drop the record"
        ) from error
