"""What a model is trained for: loss sums and their counts, as two pure functions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Array, Float

Sums = dict[str, Float[Array, ""]]


@dataclass(frozen=True)
class Task:
    """Loss terms as sums over a (micro-)batch and counts that depend on the batch only.

    The total loss is `sum_k weight[k] * sum_k / max(count_k, 1)` with counts over the global batch,
    so splitting the batch into micro-batches changes nothing.
    """

    loss_sums: Callable[[Any, Any, Array], Sums]
    """(model, batch, key) -> un-normalised float32 sum of every term."""
    loss_counts: Callable[[Any], Sums]
    """batch -> number of things each sum runs over, same keys."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Term -> weight in the total, 1 where absent; `optim.loss_weights` goes first."""


def loss_scales(counts: Sums, weights: Mapping[str, float]) -> Sums:
    """weight / max(count, 1) of every term.

    Raises:
      ValueError: a weight for a term the task does not have.
    """
    if unknown := sorted(weights.keys() - counts.keys()):
        raise ValueError(f"loss weights name {unknown}, but the loss terms are {sorted(counts)}")
    return {k: weights.get(k, 1.0) / n.clip(1).astype("float32") for k, n in counts.items()}
