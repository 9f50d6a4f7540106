"""Group matching on the device: predictions of one phrase may answer its targets in any order."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

_LARGE = 1e6


def match_groups(
    cost: Float[Array, "B R R"], group: Int[Array, "B R"], valid: Bool[Array, "B R"]
) -> Int[Array, "B R"]:
    """For every prediction the target that its group's cheapest assignment gives it.

    One block-diagonal assignment a row: pairs across groups cost a large constant, empty
    references pair with themselves for nothing. Predictions and targets share the index space.
    """
    cost = jnp.nan_to_num(cost, nan=_LARGE / 1e2, posinf=_LARGE / 1e2, neginf=-_LARGE / 1e2)
    same = (group[:, :, None] == group[:, None, :]) & valid[:, :, None] & valid[:, None, :]
    own = jnp.eye(cost.shape[-1], dtype=bool) & ~valid[:, :, None]
    blocks = jnp.where(same, cost, jnp.where(own, 0.0, _LARGE))
    rows, columns = jax.vmap(optax.assignment.hungarian_algorithm)(jax.lax.stop_gradient(blocks))
    place = jax.vmap(lambda r, c: jnp.zeros_like(c).at[r].set(c))
    return place(rows, columns)
