"""Region-prompt encoder: a point, box, scribble or mask as a few pooled visual tokens.

Shape legend: `B` rows, `P` prompts, `N` patches of a g x g grid, `C` vision width, `T` tokens a
prompt, `E` their width (`C`, or the language model's for `legacy`).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

from refvlm_jax.config.model import RegionPromptConfig
from refvlm_jax.nn.conv import Conv2d
from refvlm_jax.nn.linear import Linear
from refvlm_jax.nn.param import normal, param


class RegionPromptEncoder(nnx.Module):
    """Pools the patch features under a mask, with weights that sum to one over the region.

    `raster` and `spatial` pooling cut the region into `num_patches` parts, whose tokens add up to
    its mean, or are each a mean of their own (`part_means`); `conv` convolves the weighted map with a
    stride that leaves as many cells. `legacy` is an earlier form of the reference (after Osprey,
    arXiv 2312.10032): one mean and one token of the weights, without position code, at the language
    model's width.
    """

    def __init__(
        self,
        config: RegionPromptConfig,
        width: int,
        grid: int,
        rngs: nnx.Rngs,
        *,
        text_width: int | None = None,
    ):
        """`text_width`, the width of the language model, is needed by `legacy` pooling only."""
        self.config, self.grid = config, grid
        _check(config, grid)
        legacy, parts = config.pooling == "legacy", config.num_patches
        if legacy and text_width is None:
            raise ValueError(
                "region_prompts.pooling='legacy' needs the width of the language model"
            )
        outputs = text_width if legacy and text_width else width
        self.position = None if legacy else _position(config, width, rngs)
        self.feature = Linear(width, outputs, rngs, axes=(None, "embed")) if legacy else None
        strided = config.pooling == "conv"
        self.patch = _patch(grid // math.isqrt(parts), width, rngs) if strided else None
        out_axis = "embed" if legacy else "vision_embed"
        self.mask_token = (
            Linear(grid**2 if legacy else 1, outputs, rngs, axes=(None, out_axis))
            if config.mask_token
            else None
        )

    def __call__(
        self,
        features: Float[Array, "B P N C"] | Float[Array, "B N C"],
        masks: Num[Array, "B P Y X"],
    ) -> Float[Array, "B P T E"]:
        """Encodes prompts of any mask size over the features of the image each points into.

        Args:
          features: per prompt, or shared by all prompts of a row.
          masks: positive on the region. An empty one gives zero features, never NaN.
        """
        inside = self._cells(masks)
        area = jnp.maximum(inside.sum(-1, keepdims=True), 1.0)
        tokens = self._features(features, inside, area)
        if self.mask_token is not None:
            tokens = jnp.concatenate([tokens, self._mask_token(inside / area)], axis=2)
        if self.position is not None:
            tokens = tokens + self.position[...]
        return tokens.astype(features.dtype)

    def _features(
        self, features: Array, inside: Float[Array, "B P N"], area: Float[Array, "B P 1"]
    ) -> Float[Array, "B P t E"]:
        if self.patch is not None:
            return self._convolved(features, inside, area)
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
        if self.config.part_means:
            area = jnp.maximum(jnp.einsum("bpn,tn->bpt", inside, self._parts()), 1.0)
        tokens = sums / area[..., None]
        return tokens if self.feature is None else self.feature(tokens)

    def _convolved(self, features: Array, inside: Array, area: Array) -> Float[Array, "B P t C"]:
        assert self.patch is not None
        b, p, _ = inside.shape
        shared = features if features.ndim == 4 else features[:, None]
        weighted = shared * inside[..., None].astype(features.dtype)
        maps = weighted.reshape(b * p, self.grid, self.grid, -1)
        cells = self.patch(maps).reshape(b, p, self.config.num_patches, -1)
        # The convolution has no bias, so that it may be divided by the area afterwards, in fp32.
        return cells.astype(jnp.float32) / area[..., None]

    def _mask_token(self, weights: Float[Array, "B P N"]) -> Float[Array, "B P 1 E"]:
        assert self.mask_token is not None
        if self.feature is None:
            # The mean weight is 1/N for every region, so this token is a constant. Released weights
            # were trained with it; it says "a region is here", not what shape it has.
            weights = weights.mean(-1, keepdims=True)
        return self.mask_token(weights)[:, :, None]

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
        if self.config.pooling != "spatial":
            # Runs of consecutive raster cells, not a spatial grid: a quirk of the reference that
            # its weights depend on.
            owner = np.arange(cells) // (cells // parts)
        else:
            side = math.isqrt(parts)
            line = np.arange(self.grid) * side // self.grid
            owner = (line[:, None] * side + line[None]).reshape(-1)
        return np.asarray(owner[None] == np.arange(parts)[:, None], np.float32)


def _position(config: RegionPromptConfig, width: int, rngs: nnx.Rngs) -> nnx.Param:
    law = normal(config.position_init)
    return param(rngs, law, (config.tokens, width), ("position", "vision_embed"))


def _patch(stride: int, width: int, rngs: nnx.Rngs) -> Conv2d:
    axes = (None, "vision_embed")
    return Conv2d(width, width, stride, rngs, stride=stride, bias=False, axes=axes)


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
    if config.pooling == "conv" and (side**2 != parts or grid % side):
        raise ValueError(
            f"region_prompts.num_patches={parts} must be the square of a divisor of the grid's "
            f"side {grid} for pooling='conv'"
        )
    if config.pooling == "legacy" and parts != 1:
        raise ValueError(
            f"region_prompts.num_patches={parts} must be 1 for pooling='legacy', which has one "
            "feature token a region"
        )
    if config.part_means and config.pooling not in ("raster", "spatial"):
        raise ValueError(
            f"region_prompts.part_means=True needs pooling='raster' or 'spatial', which have parts; "
            f"set it to False for pooling={config.pooling!r}"
        )


def _overlap(cells: int, pixels: int) -> Float[np.ndarray, "g Y"]:
    """Share of each cell that each pixel covers along one axis."""
    cell, pixel = np.arange(cells)[:, None] / cells, np.arange(pixels)[None] / pixels
    right = np.minimum(cell + 1 / cells, pixel + 1 / pixels)
    shared = right - np.maximum(cell, pixel)
    # Edges that touch may overlap by a rounding error.
    return np.where(shared > 1e-9, shared * cells, 0.0).astype(np.float32)
