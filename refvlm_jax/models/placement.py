"""Placing text, image and region-prompt embeddings into one sequence with one gather."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from refvlm_jax.batch import TEXT


def place(
    text: Float[Array, "B S D"],
    visual: Float[Array, "B N D"],
    visual_index: Int[Array, "B S"],
) -> Float[Array, "B S D"]:
    """Replaces the positions that carry a visual token by that token.

    Args:
      text: embeddings of every position; arbitrary at visual positions.
      visual: the row's visual tokens: patches of every image, then tokens of every prompt.
      visual_index: TEXT, or an index into `visual`.
    """
    gathered = jnp.take_along_axis(visual, jnp.maximum(visual_index, 0)[..., None], axis=1)
    return jnp.where((visual_index == TEXT)[..., None], text, gathered.astype(text.dtype))


def prompt_features(
    tokens: Float[Array, "B I N C"], prompt_image: Int[Array, "B P"]
) -> Float[Array, "B P N C"]:
    """Patch features of the image each region prompt points into."""
    return jax.vmap(lambda per_image, index: per_image[index])(tokens, prompt_image)


def pixel_mask(pixel_box: Int[Array, "*b 4"], size: int, image_size: int) -> Bool[Array, "*b M M"]:
    """True on the real picture inside the padded square, on a grid of `size` cells a side.

    A cell counts when its centre lies in the rectangle `pixel_box`, given on `image_size` pixels.
    """
    centre = (jnp.arange(size) + 0.5) * (image_size / size)
    x0, y0, x1, y1 = (pixel_box[..., k, None] for k in range(4))
    inside_x = (centre >= x0) & (centre < x1)
    inside_y = (centre >= y0) & (centre < y1)
    return inside_y[..., :, None] & inside_x[..., None, :]
