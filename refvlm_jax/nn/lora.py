"""Low-rank adaptation of a projection (arXiv 2106.09685): y += (alpha / rank) x A B."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from refvlm_jax.config.model import LoraConfig
from refvlm_jax.nn.param import normal, param, zeros


class Lora(nnx.Module):
    """The trainable low-rank part; B starts at zero, so a fresh adapter changes nothing.

    Optimisers find it by the names `lora_a` and `lora_b`; `axes` are the logical axes of the
    projection's two ends.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        config: LoraConfig,
        rngs: nnx.Rngs,
        *,
        axes: tuple[str | None, str | None] = (None, None),
    ):
        law = normal(in_features**-0.5)
        shape_a, shape_b = (in_features, config.rank), (config.rank, out_features)
        self.scale = config.alpha / config.rank
        self.lora_a = param(rngs, law, shape_a, (axes[0], _rank(axes[0])))
        self.lora_b = param(rngs, zeros, shape_b, (_rank(axes[1]), axes[1]))

    @jax.named_scope("lora")
    def __call__(self, x: Float[Array, "*b I"]) -> Float[Array, "*b O"]:
        """The correction to add to the frozen projection's output."""
        low = jnp.einsum("...i,ir->...r", x, self.lora_a[...].astype(x.dtype))
        return jnp.einsum("...r,ro->...o", low, self.lora_b[...].astype(x.dtype)) * self.scale

    def delta(self) -> Float[Array, "*l I O"]:
        """What merging adds to the kernel, in fp32; leading layer axes are kept."""
        a, b = self.lora_a[...].astype(jnp.float32), self.lora_b[...].astype(jnp.float32)
        # On TPUs the default precision would round the factors to bf16.
        return jnp.einsum("...ir,...ro->...io", a, b, precision="highest") * self.scale


def _rank(other: str | None) -> str:
    """Logical axis of the rank beside an end: heads and feed-forward may be whole on every device."""
    return "rank" if other == "embed" else "outer_rank"
