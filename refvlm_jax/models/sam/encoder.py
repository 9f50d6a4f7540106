"""SAM's image encoder: a ViT with windowed attention, relative positions and a neck.

Shape legend: `B` pictures, `Y X` pixels, `g` patches a side, `w` patches a side of a window, `h`
patches a side of whatever attends to itself (g or w), `C` width, `H` heads, `K` head width.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from refvlm_jax.config.model import SamEncoderConfig
from refvlm_jax.mesh import constrain
from refvlm_jax.models.clip_vit import normalise_images, resize_images
from refvlm_jax.nn.activations import gelu
from refvlm_jax.nn.attention import attention
from refvlm_jax.nn.conv import Conv2d
from refvlm_jax.nn.linear import Linear
from refvlm_jax.nn.norm import LayerNorm
from refvlm_jax.nn.param import param, zeros
from refvlm_jax.nn.stack import Stack

Map = Float[Array, "B y x C"]


class RelativeAttention(nnx.Module):
    """Self-attention of an h x h map with one learned vector a row and a column distance."""

    def __init__(self, width: int, heads: int, side: int, block: int, rngs: nnx.Rngs):
        """`block` queries attend at a time; 0 = all."""
        self.heads, self.block = heads, block
        self.q, self.k, self.v = (
            Linear(width, width, rngs, axes=("vision_embed", None)) for _ in range(3)
        )
        self.out = Linear(width, width, rngs, axes=(None, "vision_embed"))
        shape = (2 * side - 1, width // heads)
        self.rows, self.columns = (param(rngs, zeros, shape, (None, None)) for _ in range(2))

    def __call__(self, x: Float[Array, "B h h C"]) -> Float[Array, "B h h C"]:
        """Attends inside each map."""
        side, head = x.shape[1], x.shape[-1] // self.heads
        split = lambda y: y.reshape(-1, side * side, self.heads, head)  # noqa: E731
        q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
        q = jnp.concatenate([q * head**-0.5, *self._distances(q, side)], axis=-1)
        k = _with_places(k, side)
        return self.out(_in_blocks(q, k, v, self.block).reshape(x.shape))

    def _distances(self, q: Float[Array, "B n H K"], side: int) -> list[Float[Array, "B n H h"]]:
        """What a query adds to its scores for the keys of each row, and of each column.

        SAM adds these terms to the scores. As more channels of q, against one-hot places as channels
        of k, they need no second array of the size of the scores.
        """
        index = np.arange(side)[:, None] - np.arange(side)[None] + side - 1
        grid = q.reshape(-1, side, side, *q.shape[2:])
        rows, columns = (t[...].astype(q.dtype)[index] for t in (self.rows, self.columns))
        terms = (
            jnp.einsum("byxhk,ysk->byxhs", grid, rows),
            jnp.einsum("byxhk,xsk->byxhs", grid, columns),
        )
        return [term.reshape(*q.shape[:3], side) for term in terms]


def _with_places(k: Float[Array, "B n H K"], side: int) -> Float[Array, "B n H E"]:
    """Keys followed by the one-hot row and column of their cell."""
    y, x = np.divmod(np.arange(side * side), side)
    places = jnp.asarray(np.concatenate([np.eye(side)[y], np.eye(side)[x]], axis=-1), k.dtype)
    places = jnp.broadcast_to(places[:, None], (*k.shape[:3], 2 * side))
    return jnp.concatenate([k, places], axis=-1)


def _in_blocks(
    q: Float[Array, "B n H E"], k: Float[Array, "B n H E"], v: Float[Array, "B n H K"], block: int
) -> Float[Array, "B n H K"]:
    """Attention of already scaled queries, `block` of them at a time where that divides them."""
    count = q.shape[1]
    if not block or count <= block or count % block:
        return attention(q, k, v, scale=1.0)
    parts = jnp.moveaxis(q.reshape(q.shape[0], -1, block, *q.shape[2:]), 1, 0)
    mixed = jax.lax.map(lambda part: attention(part, k, v, scale=1.0), parts)
    return jnp.moveaxis(mixed, 0, 1).reshape(*q.shape[:3], v.shape[-1])


def _to_windows(x: Map, window: int) -> Float[Array, "W w w C"]:
    """Cuts maps into windows, after filling them up with zeros at the right and the bottom."""
    fill = -x.shape[1] % window
    x = jnp.pad(x, ((0, 0), (0, fill), (0, fill), (0, 0)))
    across = x.shape[1] // window
    x = x.reshape(-1, across, window, across, window, x.shape[-1])
    return x.swapaxes(2, 3).reshape(-1, window, window, x.shape[-1])


def _from_windows(windows: Float[Array, "W w w C"], side: int) -> Map:
    """Puts the windows together again and drops what `_to_windows` added."""
    window, channels = windows.shape[1], windows.shape[-1]
    across = -(-side // window)
    x = windows.reshape(-1, across, across, window, window, channels).swapaxes(2, 3)
    return x.reshape(-1, across * window, across * window, channels)[:, :side, :side]


class SamBlock(nnx.Module):
    """Pre-norm transformer block; attention is global without a `window`."""

    def __init__(self, config: SamEncoderConfig, window: int, rngs: nnx.Rngs):
        c, self.window = config.width, window
        self.norm1, self.norm2 = (LayerNorm(c, rngs, eps=config.norm_eps) for _ in range(2))
        side, block = (window, 0) if window else (config.grid, config.attention_block)
        self.attn = RelativeAttention(c, config.heads, side, block, rngs)
        self.fc1 = Linear(c, config.mlp_dim, rngs, axes=("vision_embed", None))
        self.fc2 = Linear(config.mlp_dim, c, rngs, axes=(None, "vision_embed"))

    def __call__(self, x: Map) -> Map:
        """Applies the block. What fills up a window is attended to, as released weights expect."""
        with jax.named_scope("attn"):
            h = self.norm1(x)
            if self.window:
                h = _from_windows(self.attn(_to_windows(h, self.window)), x.shape[1])
            else:
                h = self.attn(h)
            x = x + h
        with jax.named_scope("mlp"):
            return x + self.fc2(gelu(self.fc1(self.norm2(x))))


class Neck(nnx.Module):
    """A 1x1 and a 3x3 convolution to the embedding's channels, a norm after each."""

    def __init__(self, config: SamEncoderConfig, rngs: nnx.Rngs):
        c, out, eps = config.width, config.out_width, config.norm_eps
        self.conv1 = Conv2d(c, out, 1, rngs, bias=False, axes=("vision_embed", None))
        self.norm1 = LayerNorm(out, rngs, eps=eps)
        self.conv2 = Conv2d(out, out, 3, rngs, padding=1, bias=False, axes=("conv_in", "conv_out"))
        self.norm2 = LayerNorm(out, rngs, eps=eps)

    def __call__(self, x: Map) -> Map:
        """Applies the layers."""
        return self.norm2(self.conv2(self.norm1(self.conv1(x))))


class SamEncoder(nnx.Module):
    """The image encoder; windowed and global blocks are two stacks, run in the order of the layers."""

    def __init__(self, config: SamEncoderConfig, rngs: nnx.Rngs):
        _check(config)
        self.config = config
        c, size, whole = config.width, config.patch_size, len(config.global_layers)
        axes = (None, "vision_embed")
        self.patch_embed = Conv2d(3, c, size, rngs, stride=size, axes=axes)
        shape = (config.grid, config.grid, c)
        self.position = param(rngs, zeros, shape, ("position", None, "vision_embed"))
        self.windowed = _stack(config, config.window, config.layers - whole, rngs)
        self.whole = _stack(config, 0, whole, rngs)
        self.neck = Neck(config, rngs)

    def __call__(self, images: Array, dtype: jnp.dtype = jnp.float32) -> Float[Array, "B g g E"]:
        """Embeds square pictures uint8[B, Y, X, 3] (or float, already normalised and of the size)."""
        return self.embed(images, dtype)[0]

    def embed(
        self, images: Array, dtype: jnp.dtype = jnp.float32, *, states: bool = False
    ) -> tuple[Float[Array, "B g g E"], list[Map]]:
        """The embedding of the same pictures, and with `states` the output of every block."""
        pixels = normalise_images(resize_images(images, self.config.image_size), self.config)
        x = self.patch_embed(pixels.astype(dtype)) + self.position[...].astype(dtype)
        done = {True: 0, False: 0}
        kept: list[Map] = []
        for is_global, count in _runs(self.config):
            stack, start = self.whole if is_global else self.windowed, done[is_global]
            assert stack is not None
            body = _recorded if states else _body
            with jax.named_scope("global" if is_global else "windowed"):
                x, outputs = stack.scan(body, x, start=start, stop=start + count)
            kept += [] if outputs is None else list(outputs)
            done[is_global] += count
        with jax.named_scope("neck"):
            return self.neck(x), kept


def _stack(config: SamEncoderConfig, window: int, layers: int, rngs: nnx.Rngs) -> Stack | None:
    return Stack(lambda keys: SamBlock(config, window, keys), layers, rngs) if layers else None


def _body(block: SamBlock, x: Map, _: None) -> tuple[Map, None]:
    return constrain(block(x), "image", None, None, None), None


def _recorded(block: SamBlock, x: Map, _: None) -> tuple[Map, Map]:
    x, _ = _body(block, x, None)
    return x, x


def _runs(config: SamEncoderConfig) -> list[tuple[bool, int]]:
    """Successive layers of one kind, as (global, how many)."""
    runs: list[tuple[bool, int]] = []
    for layer in range(config.layers):
        kind = layer in config.global_layers
        if runs and runs[-1][0] == kind:
            runs[-1] = (kind, runs[-1][1] + 1)
        else:
            runs.append((kind, 1))
    return runs


def _check(config: SamEncoderConfig) -> None:
    if config.image_size % config.patch_size:
        raise ValueError(
            f"sam.encoder.image_size={config.image_size} must be a multiple of "
            f"patch_size={config.patch_size}"
        )
    if config.width % config.heads:
        raise ValueError(
            f"sam.encoder.width={config.width} cannot be cut into heads={config.heads}"
        )
    wanted = sorted({i for i in config.global_layers if 0 <= i < config.layers})
    if list(config.global_layers) != wanted:
        raise ValueError(
            f"sam.encoder.global_layers={config.global_layers} must be increasing layers in "
            f"0..{config.layers - 1}"
        )
