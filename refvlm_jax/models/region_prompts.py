"""Region-prompt encoder: a point, box, scribble or mask as a few pooled visual tokens.

Shape legend: `B` rows, `P` prompts, `N` patches of a g x g grid, `C` vision width, `T` tokens a
prompt.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

from refvlm_jax.config.model import RegionPromptConfig
from refvlm_jax.nn.linear import Linear
from refvlm_jax.nn.param import param


class RegionPromptEncoder(nnx.Module):
    """Area-normalised pooling of patch features under a mask, cut into `num_patches` parts."""

    def __init__(self, config: RegionPromptConfig, width: int, grid: int, rngs: nnx.Rngs):
        self.config, self.grid = config, grid
        _check(config, grid)
        normal = jax.nn.initializers.normal(1.0)
        axes = ("position", "vision_embed")
        self.position = param(rngs, normal, (config.tokens, width), axes)
        self.mask_token = (
            Linear(1, width, rngs, axes=(None, "vision_embed")) if config.mask_token else None
        )

    def __call__(
        self,
        features: Float[Array, "B P N C"] | Float[Array, "B N C"],
        masks: Num[Array, "B P Y X"],
    ) -> Float[Array, "B P T C"]:
        """Encodes prompts of any mask size over the features of the image each points into.

        Args:
          features: per prompt, or shared by all prompts of a row.
          masks: positive on the region. An empty one gives zero features, never NaN.
        """
        inside = self._cells(masks)
        area = jnp.maximum(inside.sum(-1), 1.0)
        parts = jnp.asarray(self._parts(), features.dtype)
        per_image = "bpnc" if features.ndim == 4 else "bnc"
        # Zeros and ones are exact in any dtype; the division by the area stays in fp32.
        sums = jnp.einsum(
            f"bpn,tn,{per_image}->bptc",
            inside.astype(features.dtype),
            parts,
            features,
            preferred_element_type=jnp.float32,
        )
        tokens = sums / area[..., None, None]
        if self.mask_token is not None:
            # The mean weight is 1/N for every region, so this token is a constant. Released weights
            # were trained with it; it says "a region is here", not what shape it has.
            token = self.mask_token((inside / area[..., None]).mean(-1, keepdims=True))
            tokens = jnp.concatenate([tokens, token[:, :, None]], axis=2)
        return (tokens + self.position[...]).astype(features.dtype)

    def _cells(self, masks: Num[Array, "B P Y X"]) -> Float[Array, "B P N"]:
        """1 where a grid cell belongs to the region."""
        b, p, y, x = masks.shape
        wide = masks.astype(jnp.float32)
        if self.config.pooling == "spatial":
            # Any overlap counts, so that no region vanishes.
            rows, columns = _overlap(self.grid, y), _overlap(self.grid, x)
            resized = jnp.einsum("gy,bpyx,hx->bpgh", rows, wide, columns)
        else:
            # Without antialiasing, as the reference: regions smaller than a cell may vanish.
            shape = (b, p, self.grid, self.grid)
            resized = jax.image.resize(wide, shape, "bilinear", antialias=False)
        return (resized > 0).astype(jnp.float32).reshape(b, p, -1)

    def _parts(self) -> Float[np.ndarray, "t N"]:
        """1 where a cell belongs to a pooled token."""
        parts, cells = self.config.num_patches, self.grid**2
        if self.config.pooling == "raster":
            # Runs of consecutive raster cells, not a spatial grid: a quirk of the reference that
            # its weights depend on.
            owner = np.arange(cells) // (cells // parts)
        else:
            side = math.isqrt(parts)
            line = np.arange(self.grid) * side // self.grid
            owner = (line[:, None] * side + line[None]).reshape(-1)
        return np.asarray(owner[None] == np.arange(parts)[:, None], np.float32)


def _check(config: RegionPromptConfig, grid: int) -> None:
    parts, cells, side = config.num_patches, grid**2, math.isqrt(config.num_patches)
    if config.pooling == "raster" and cells % parts:
        raise ValueError(
            f"region_prompts.num_patches={parts} does not divide the {cells} raster cells; "
            "choose a divisor, or pooling='spatial'"
        )
    if config.pooling == "spatial" and (side**2 != parts or side > grid):
        raise ValueError(
            f"region_prompts.num_patches={parts} must be a square of at most {cells} cells "
            "for pooling='spatial'"
        )


def _overlap(cells: int, pixels: int) -> Float[np.ndarray, "g Y"]:
    """Share of each cell that each pixel covers along one axis."""
    cell, pixel = np.arange(cells)[:, None] / cells, np.arange(pixels)[None] / pixels
    right = np.minimum(cell + 1 / cells, pixel + 1 / pixels)
    shared = right - np.maximum(cell, pixel)
    # Edges that touch may overlap by a rounding error.
    return np.where(shared > 1e-9, shared * cells, 0.0).astype(np.float32)
