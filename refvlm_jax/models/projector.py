"""The projector: visual features to the width of the language model."""

import itertools

from flax import nnx
from jaxtyping import Array, Float

from refvlm_jax.nn.activations import gelu
from refvlm_jax.nn.linear import Linear


class Projector(nnx.Module):
    """`depth` linear layers with GELU between them; shared by image and region-prompt tokens."""

    def __init__(self, in_features: int, out_features: int, depth: int, rngs: nnx.Rngs):
        widths = (in_features, *(out_features,) * depth)
        pairs = itertools.pairwise(widths)
        self.layers = nnx.List([Linear(i, o, rngs, axes=(None, "embed")) for i, o in pairs])

    def __call__(self, x: Float[Array, "*b C"]) -> Float[Array, "*b D"]:
        """Projects each token."""
        for index, layer in enumerate(self.layers):
            x = layer(x if index == 0 else gelu(x))
        return x
