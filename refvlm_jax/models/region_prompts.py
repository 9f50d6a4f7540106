"""Region-prompt encoder: a point, box, scribble or mask as a few pooled visual tokens.

Shape legend: `B` rows, `P` prompts, `N` patches of a g x g grid, `C` vision width, `T` tokens a prompt.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from refvlm_jax.config.model import RegionPromptConfig
from refvlm_jax.nn.linear import Linear
from refvlm_jax.nn.param import param


class RegionPromptEncoder(nnx.Module):
    """Area-normalised pooling of patch features under a mask, cut into `num_patches` parts."""

    def __init__(self, config: RegionPromptConfig, width: int, grid: int, rngs: nnx.Rngs):
        self.config, self.grid = config, grid
        self._check()
        normal = jax.nn.initializers.normal(1.0)
        axes = ("position", "vision_embed")
        self.position = param(rngs, normal, (config.tokens, width), axes)
        self.mask_token = Linear(1, width, rngs) if config.mask_token else None

    def _check(self) -> None:
        parts, cells = self.config.num_patches, self.grid**2
        if self.config.pooling == "raster" and cells % parts:
            raise ValueError(
                f"region_prompts.num_patches={parts} does not divide the {cells} raster cells; "
                "choose a divisor, or pooling='spatial'"
            )
        if self.config.pooling == "spatial" and int(parts**0.5) ** 2 != parts:
            raise ValueError(f"region_prompts.num_patches={parts} must be a square for 'spatial'")

    def __call__(self, features: Float[Array, "B P N C"], masks: Array) -> Float[Array, "B P T C"]:
        """Encodes prompt masks [B, P, Y, X] over the features of the image each points into."""
        inside = self._cells(masks)
        weight = inside / jnp.maximum(inside.sum(-1, keepdims=True), 1.0)
        parts = jnp.asarray(self._parts(), weight.dtype)
        tokens = jnp.einsum("bpn,tn,bpnc->bptc", weight, parts, features.astype(jnp.float32))
        if self.mask_token is not None:
            # The mean weight is 1/N for every region, so this token is a constant. Released weights
            # were trained with it; it says "a region is here", not what shape it has.
            token = self.mask_token(weight.mean(-1, keepdims=True))
            tokens = jnp.concatenate([tokens, token[:, :, None]], axis=2)
        return (tokens + self.position[...]).astype(features.dtype)

    def _cells(self, masks: Array) -> Float[Array, "B P N"]:
        """1 where a grid cell belongs to the region."""
        b, p, y, x = masks.shape
        wide = masks.astype(jnp.float32)
        if self.config.pooling == "spatial":
            wide = wide.reshape(b, p, self.grid, y // self.grid, self.grid, x // self.grid)
            resized = wide.mean((3, 5))
        else:
            # Without antialiasing, as the reference: regions smaller than a cell may vanish.
            shape = (b, p, self.grid, self.grid)
            resized = jax.image.resize(wide, shape, "bilinear", antialias=False)
        return (resized > 0).astype(jnp.float32).reshape(b, p, -1)

    def _parts(self) -> np.ndarray:
        """float[num_patches, N] which cell belongs to which pooled token."""
        parts, cells = self.config.num_patches, self.grid**2
        if self.config.pooling == "raster":
            # Runs of consecutive raster cells, not a spatial grid: a quirk of the reference that
            # its weights depend on.
            owner = np.arange(cells) // (cells // parts)
        else:
            side = int(parts**0.5)
            line = np.arange(self.grid) * side // self.grid
            owner = (line[:, None] * side + line[None]).reshape(-1)
        return np.asarray(owner[None] == np.arange(parts)[:, None], np.float32)
