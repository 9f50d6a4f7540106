"""SAM's two-way transformer: a few tokens and an image read each other (arXiv 2304.02643, A).

Shape legend: `B` pairs of tokens and image, `T` tokens, `N` cells of the image, `D` width.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from refvlm_jax.nn.attention import attention
from refvlm_jax.nn.linear import Linear
from refvlm_jax.nn.norm import LayerNorm
from refvlm_jax.nn.param import normal, param
from refvlm_jax.nn.stack import Stack

Tokens = Float[Array, "B T D"]
Image = Float[Array, "B N D"]
Axes = tuple[str | None, str | None]


class FourierPosition(nnx.Module):
    """Random Fourier features of places; the matrix is drawn once and never trained."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        law = normal(1.0)
        self.fourier = param(rngs, law, (2, width // 2), (None, None))

    def __call__(self, places: Float[Array, "*b 2"]) -> Float[Array, "*b D"]:
        """Codes of places (x, y) in [0, 1], in fp32."""
        matrix = jax.lax.stop_gradient(self.fourier[...]).astype(jnp.float32)
        # On TPUs the default precision would shift the phases.
        angle = 2 * np.pi * jnp.matmul(2 * places - 1, matrix, precision="highest")
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)

    def grid(self, height: int, width: int) -> Float[Array, "N D"]:
        """Codes of the cell centres of a map in raster order."""
        y, x = np.meshgrid(
            (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij"
        )
        places = np.stack([x, y], axis=-1).reshape(-1, 2)
        return self(jnp.asarray(places, jnp.float32))


class TwoWayAttention(nnx.Module):
    """Multi-head attention whose inner width is `width / shrink`."""

    def __init__(
        self, width: int, heads: int, rngs: nnx.Rngs, *, shrink: int = 1, axis: str | None = None
    ):
        inner, self.heads = width // shrink, heads
        self.q, self.k, self.v = (Linear(width, inner, rngs, axes=(axis, None)) for _ in range(3))
        self.out = Linear(inner, width, rngs, axes=(None, axis))

    def __call__(
        self, q: Tokens, k: Float[Array, "B S D"], v: Float[Array, "B S D"]
    ) -> Float[Array, "B T D"]:
        """Attends from q to (k, v); position codes are already added."""
        split = lambda x: x.reshape(*x.shape[:2], self.heads, -1)  # noqa: E731
        mixed = attention(split(self.q(q)), split(self.k(k)), split(self.v(v)))
        return self.out(mixed.reshape(*q.shape[:2], -1))


class TwoWayLayer(nnx.Module):
    """Self-attention of the tokens, tokens to image, feed-forward, image to tokens."""

    def __init__(self, width: int, heads: int, mlp_dim: int, rngs: nnx.Rngs, axes: Axes):
        axis = axes[0]
        self.self_attn = TwoWayAttention(width, heads, rngs, axis=axis)
        self.to_image = TwoWayAttention(width, heads, rngs, shrink=2, axis=axis)
        self.to_tokens = TwoWayAttention(width, heads, rngs, shrink=2, axis=axis)
        self.fc1 = Linear(width, mlp_dim, rngs, axes=axes)
        self.fc2 = Linear(mlp_dim, width, rngs, axes=axes[::-1])
        self.norm1, self.norm2, self.norm3, self.norm4 = (LayerNorm(width, rngs) for _ in range(4))

    def __call__(
        self, tokens: Tokens, image: Image, token_pos: Tokens, image_pos: Image, first: Array
    ) -> tuple[Tokens, Image]:
        """One layer; the `first` one replaces the tokens by their self-attention, uncoded."""
        placed = jnp.where(first, tokens, tokens + token_pos)
        mixed = self.self_attn(placed, placed, tokens)
        tokens = self.norm1(jnp.where(first, mixed, tokens + mixed))
        found = self.to_image(tokens + token_pos, image + image_pos, image)
        tokens = self.norm2(tokens + found)
        tokens = self.norm3(tokens + self.fc2(jax.nn.relu(self.fc1(tokens))))
        found = self.to_tokens(image + image_pos, tokens + token_pos, tokens)
        return tokens, self.norm4(image + found)


class TwoWayTransformer(nnx.Module):
    """Layers and one more reading of the image by the tokens."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        mlp_dim: int,
        rngs: nnx.Rngs,
        *,
        axes: Axes = (None, None),
    ):
        """`axes` are the logical axes of the width and of the feed-forward's hidden width."""
        if width % (2 * heads):
            raise ValueError(f"width {width} cannot be cut in half and then into {heads} heads")
        self.layers = Stack(lambda k: TwoWayLayer(width, heads, mlp_dim, k, axes), layers, rngs)
        self.final = TwoWayAttention(width, heads, rngs, shrink=2, axis=axes[0])
        self.norm = LayerNorm(width, rngs)

    def __call__(
        self, tokens: Tokens, image: Image, image_pos: Float[Array, "N D"], *, remat: str = "none"
    ) -> tuple[Tokens, Image]:
        """Both sides after reading each other; the tokens are their own position codes."""
        token_pos, image_pos = tokens, image_pos.astype(image.dtype)[None]

        def body(layer: TwoWayLayer, pair: tuple, first: Array) -> tuple[tuple, None]:
            tokens, image = pair
            return layer(tokens, image, token_pos, image_pos, first), None

        first = jnp.arange(self.layers.layers) == 0
        (tokens, image), _ = self.layers.scan(body, (tokens, image), first, remat=remat)
        found = self.final(tokens + token_pos, image + image_pos, image)
        return self.norm(tokens + found), image
