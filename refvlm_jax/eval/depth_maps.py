"""Depth maps of records: in a file beside them, or within."""

import base64
import binascii
import os
from pathlib import Path

import numpy as np

from refvlm_jax import depth_png
from refvlm_jax.eval.record_types import DepthMap, Prediction, Truth, instances


def load_depth(depth: DepthMap, width: int, height: int) -> np.ndarray:
    """float32[height, width], NaN where unknown.

    Raises:
      ValueError: the file is missing, damaged or of another size.
    """
    name = depth.path or "a depth map within a record"
    try:
        data = Path(depth.path).read_bytes() if depth.path else base64.b64decode(depth.png)
        return depth_png.decode(
            data, width, height, scale=depth.scale, offset=depth.offset, invalid=depth.invalid
        )
    except OSError as error:
        raise ValueError(
            f"{name}: depth map cannot be read ({error.strerror}); keep it where the records say"
        ) from error
    except (ValueError, binascii.Error) as error:
        raise ValueError(f"{name}: {error}") from error


def within(values: np.ndarray, kind: str = "metric") -> DepthMap:
    """A map [H, W] of positive values carried by its record; NaN where unknown."""
    data, scale = depth_png.encode(values)
    return DepthMap(png=base64.b64encode(data).decode("ascii"), scale=scale, kind=kind)


def beside(path: Path, values: np.ndarray, kind: str = "metric") -> DepthMap:
    """Writes a map [H, W] of positive values to a PNG file, atomically; its folder must exist."""
    data, scale = depth_png.encode(values)
    scratch = path.with_name(f"{path.name}.tmp")
    scratch.write_bytes(data)
    os.replace(scratch, path)
    return DepthMap(path=str(path.absolute()), scale=scale, kind=kind)


def first_depth(record: Prediction | Truth) -> DepthMap | None:
    """The first depth map of a record in text order."""
    return next((i.depth for i in instances(record) if i.depth is not None), None)
