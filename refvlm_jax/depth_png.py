"""Depth maps as 16-bit PNG: value = sample * scale + offset, unknown where a sample is `invalid`.

Datasets, prediction records and the report share this. Arrays are float32 with NaN where nothing is
known.
"""

import io

import numpy as np
from PIL import Image

_MOST = 65535
_MODES = ("I;16", "I;16B", "I")


def encode(values: np.ndarray) -> tuple[bytes, float]:
    """A PNG of positive values [H, W] and its scale; unknown (not finite) pixels become 0.

    Rounded to 1/65535 of the largest value. Nothing known gives scale 1.
    """
    values = np.asarray(values, np.float64)
    known = np.isfinite(values) & (values > 0)
    scale = float(values[known].max()) / _MOST if known.any() else 1.0
    samples = np.zeros(values.shape, np.uint16)
    # 0 means unknown, so what is known starts at 1.
    samples[known] = np.clip(np.rint(values[known] / scale), 1, _MOST)
    buffer = io.BytesIO()
    Image.fromarray(samples).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue(), scale


def decode(
    data: bytes,
    width: int,
    height: int,
    *,
    scale: float,
    offset: float = 0.0,
    invalid: int = 0,
) -> np.ndarray:
    """float32[height, width], NaN where unknown.

    Raises:
      ValueError: not a single-channel 16-bit PNG, a damaged one, or one of another size.
    """
    samples = decode_samples(data, width, height)
    values = samples * scale + offset
    return np.where(samples == invalid, np.nan, values).astype(np.float32)


def encode_samples(samples: np.ndarray) -> bytes:
    """A PNG of 16-bit samples [H, W] as they are."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(samples, np.uint16)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decode_samples(data: bytes, width: int, height: int) -> np.ndarray:
    """int64[height, width] samples of a PNG; raises ValueError as `decode` does."""
    try:
        picture = Image.open(io.BytesIO(data))
        mode, size = picture.mode, picture.size
    except Exception as error:  # Pillow's readers raise many unrelated types on damaged files
        raise ValueError(f"not a PNG ({len(data)} bytes, {type(error).__name__})") from error
    if mode not in _MODES:
        raise ValueError(f"pixels of mode {mode}; expected one channel of 16 bits")
    if size != (width, height):
        raise ValueError(f"{size[0]} x {size[1]} pixels, the picture has {width} x {height}")
    try:
        return np.asarray(picture).astype(np.int64)
    except Exception as error:
        raise ValueError(f"damaged or cut PNG ({error})") from error
