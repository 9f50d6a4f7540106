"""CLIP vision transformer, with an optional convolutional stem for small models from scratch.

Shape legend: `B` pictures, `Y X` pixels, `g` patches a side, `N` = g^2, `C` width.
"""

import dataclasses
import itertools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from refvlm_jax.config.model import ConvNextConfig, SamEncoderConfig, VisionConfig
from refvlm_jax.mesh import constrain
from refvlm_jax.nn.activations import ACTIVATIONS, gelu
from refvlm_jax.nn.attention import attention
from refvlm_jax.nn.conv import Conv2d
from refvlm_jax.nn.linear import Linear
from refvlm_jax.nn.norm import LayerNorm
from refvlm_jax.nn.param import normal, param
from refvlm_jax.nn.stack import Stack


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VisionFeatures:
    """What the tower hands on."""

    tokens: Float[Array, "B N C"]
    """The selected hidden state without the class token."""
    maps: tuple[Float[Array, "B y x C"], ...]
    """Feature maps the unit decoders choose from (see `feature_dims`); the last is g x g."""
    sam: Float[Array, "B e e E"] | None = None
    """The pictures as SAM's own encoder sees them; None for models without it."""

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.maps[-1].shape[1]


def feature_dims(config: VisionConfig) -> tuple[int, ...]:
    """Channels of `VisionFeatures.maps`.

    A patch stem gives every hidden state, 0 = embeddings; a conv stem gives the output of each stem
    convolution from fine to coarse, then the selected hidden state.
    """
    if config.stem == "patch":
        return (config.width,) * (_depth(config) + 1)
    return (*config.stem_channels, config.width, config.width)


def _depth(config: VisionConfig) -> int:
    """Blocks that must run; those after the last one used by anything are left out."""
    if config.stem == "patch":
        return config.layers
    return _selected(config)


def _selected(config: VisionConfig) -> int:
    """Index of the hidden state handed on, 0 = embeddings."""
    if not -config.layers - 1 <= config.feature_layer <= config.layers:
        raise ValueError(
            f"vision.feature_layer={config.feature_layer} must lie in "
            f"-{config.layers + 1}..{config.layers}, the hidden states of {config.layers} layers"
        )
    return config.feature_layer % (config.layers + 1)


def normalise_images(
    images: Array, config: VisionConfig | ConvNextConfig | SamEncoderConfig
) -> Float[Array, "B Y X 3"]:
    """uint8 pixels to mean 0, variance 1 as the tower was trained; float input passes through."""
    if images.dtype != jnp.uint8:
        return images
    mean, std = np.asarray(config.image_mean), np.asarray(config.image_std)
    scale, shift = (1.0 / (255.0 * std)), mean / std
    return images.astype(jnp.float32) * scale.astype(np.float32) - shift.astype(np.float32)


def resize_images(
    images: Array, size: int, method: Literal["bilinear", "cubic"] = "bilinear"
) -> Array:
    """Pictures uint8[B, Y, X, 3] at `size` x `size`, as Pillow's filter does it; others unchanged."""
    if images.dtype != jnp.uint8 or images.shape[1:3] == (size, size):
        return images
    rows, height, _, channels = images.shape
    x = images.astype(jnp.float32)
    # Pillow keeps bytes between its passes, first along the rows; cubic filters overshoot at edges.
    for shape in ((rows, height, size, channels), (rows, size, size, channels)):
        x = jnp.clip(jnp.round(jax.image.resize(x, shape, method, antialias=True)), 0, 255)
    return x.astype(jnp.uint8)


def sine_grid(grid: int, width: int) -> np.ndarray:
    """Fixed float[N, C] position code: sines and cosines of row and column, a quarter each."""
    if width % 4:
        raise ValueError(f"vision.width={width} must be divisible by 4 for position='sine'")
    frequency = 100.0 ** (-np.arange(width // 4) / (width // 4))
    place = (np.arange(grid) + 0.5) / grid * 2 * np.pi * 4
    y, x = np.meshgrid(place, place, indexing="ij")
    waves = [f(c.reshape(-1, 1) * frequency) for c in (y, x) for f in (np.sin, np.cos)]
    return np.concatenate(waves, axis=-1).astype(np.float32)


class ConvStem(nnx.Module):
    """Stride-2 3x3 convolutions with channel normalisation; every output is a feature map."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        widths = (3, *config.stem_channels, config.width)
        if config.patch_size != 2 ** (len(widths) - 1):
            raise ValueError(
                f"vision.patch_size={config.patch_size} must be 2^{len(widths) - 1}, the stride of "
                f"a stem with {len(widths) - 1} convolutions"
            )
        pairs = list(itertools.pairwise(widths))
        axes = ("conv_in", "conv_out")
        self.convs = nnx.List(
            [Conv2d(i, o, 3, rngs, stride=2, padding=1, axes=axes) for i, o in pairs]
        )
        self.norms = nnx.List([LayerNorm(o, rngs) for _, o in pairs])

    @jax.named_scope("stem")
    def __call__(self, x: Float[Array, "B Y X 3"]) -> tuple[Float[Array, "B y x C"], ...]:
        """Feature maps from fine to coarse."""
        maps = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = gelu(norm(conv(x)))
            maps.append(x)
        return tuple(maps)


class VisionBlock(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        c, self.heads = config.width, config.heads
        self.activation = config.activation
        square = ("vision_embed", None)
        self.norm1, self.norm2 = (LayerNorm(c, rngs, eps=config.norm_eps) for _ in range(2))
        self.q, self.k, self.v = (Linear(c, c, rngs, axes=square) for _ in range(3))
        self.out = Linear(c, c, rngs, axes=(None, "vision_embed"))
        self.fc1 = Linear(c, config.mlp_dim, rngs, axes=square)
        self.fc2 = Linear(config.mlp_dim, c, rngs, axes=(None, "vision_embed"))

    def __call__(self, x: Float[Array, "B S C"]) -> Float[Array, "B S C"]:
        """Applies the block."""
        with jax.named_scope("attn"):
            h = self.norm1(x)
            split = (*x.shape[:2], self.heads, x.shape[-1] // self.heads)
            mixed = attention(*(f(h).reshape(split) for f in (self.q, self.k, self.v)))
            x = x + self.out(mixed.reshape(x.shape))
        with jax.named_scope("mlp"):
            return x + self.fc2(ACTIVATIONS[self.activation](self.fc1(self.norm2(x))))


def _patch_embed(config: VisionConfig, rngs: nnx.Rngs) -> Conv2d:
    size, axes = config.patch_size, (None, "vision_embed")
    return Conv2d(3, config.width, size, rngs, stride=size, bias=False, axes=axes)


class ClipViT(nnx.Module):
    """The vision tower."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        self.config = config
        c, law = config.width, normal(0.02)
        conv = config.stem == "conv"
        self.stem = ConvStem(config, rngs) if conv else None
        self.patch_embed = None if conv else _patch_embed(config, rngs)
        axes = ("position", "vision_embed")
        self.class_token = param(rngs, law, (1, c), axes) if config.class_token else None
        places = config.tokens + int(config.class_token)
        self.position = (
            param(rngs, law, (places, c), axes) if config.position == "learned" else None
        )
        self.pre_norm = LayerNorm(c, rngs, eps=config.norm_eps)
        self.blocks = Stack(lambda keys: VisionBlock(config, keys), _depth(config), rngs)

    def __call__(self, images: Array, dtype: jnp.dtype = jnp.float32) -> VisionFeatures:
        """Encodes pictures uint8[B, Y, X, 3] (or float, already normalised)."""
        stem_maps, states = self.hidden_states(images, dtype)
        states = states[:, :, int(self.config.class_token) :]
        if self.stem is not None:
            return VisionFeatures(states[-1], (*stem_maps, self._grid(states[-1])))
        selected = states[_selected(self.config)]
        return VisionFeatures(selected, tuple(self._grid(s) for s in states))

    def hidden_states(
        self, images: Array, dtype: jnp.dtype = jnp.float32
    ) -> tuple[tuple[Float[Array, "B y x C"], ...], Float[Array, "L B S C"]]:
        """Feature maps of the stem, and every hidden state with its class token, 0 = embeddings."""
        x = normalise_images(images, self.config).astype(dtype)
        stem_maps = self.stem(x) if self.stem is not None else ()
        patches = stem_maps[-1] if self.patch_embed is None else self.patch_embed(x)
        embedded = self.pre_norm(self._with_positions(patches))

        def body(block: VisionBlock, x: Array, _: None) -> tuple[Array, Array]:
            x = constrain(block(x), "image", None, None)
            return x, x

        _, states = self.blocks.scan(body, embedded)
        return stem_maps, jnp.concatenate([embedded[None], states])

    def _with_positions(self, patches: Float[Array, "B g g C"]) -> Float[Array, "B S C"]:
        x = patches.reshape(patches.shape[0], -1, patches.shape[-1])
        if self.position is None:
            x = x + jnp.asarray(sine_grid(self.config.grid, self.config.width), x.dtype)
        if self.class_token is not None:
            token = self.class_token[...].astype(x.dtype)[None]
            x = jnp.concatenate([jnp.repeat(token, x.shape[0], axis=0), x], axis=1)
        return x if self.position is None else x + self.position[...].astype(x.dtype)

    def _grid(self, tokens: Float[Array, "B N C"]) -> Float[Array, "B g g C"]:
        return tokens.reshape(tokens.shape[0], self.config.grid, self.config.grid, -1)
