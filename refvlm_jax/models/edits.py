"""Taps and injections: reading or changing activations at named places of the Llama stack.

Without edits the stack is one scan and its program is untouched. With edits, each edited layer
becomes a scan of its own; all others stay together.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Site = Literal["input_emb", "block_in", "attn_out", "ffn_out", "last_hidden"]
LAYER_SITES = ("block_in", "attn_out", "ffn_out")
END_SITES = ("input_emb", "last_hidden")
Hidden = Float[Array, "B S D"]
Taps = dict[str, Hidden]


@dataclass(frozen=True, kw_only=True, eq=False)
class Edit:
    """One place to read from or write to."""

    site: Site
    layer: int | None = None
    """Block index for `block_in`, `attn_out` and `ffn_out`; None for the two ends."""
    change: Callable[[Hidden], Hidden] | Array | None = None
    """A function of the activation or an array [B, S, D] in its place; None leaves it."""
    tap: str = ""
    """Name under which the (changed) activation is returned; empty returns nothing."""

    def __post_init__(self) -> None:
        if self.site not in (*LAYER_SITES, *END_SITES):
            raise ValueError(
                f"edit.site = {self.site!r} is unknown; use one of {(*LAYER_SITES, *END_SITES)}"
            )
        if (self.site in LAYER_SITES) != (self.layer is not None):
            raise ValueError(
                f"edit at {self.site}: a layer goes with {LAYER_SITES}, and only there"
            )

    def __call__(self, x: Hidden) -> Hidden:
        """The activation that takes the place of `x`, in its shape and dtype."""
        if self.change is None:
            return x
        changed = jnp.asarray(self.change(x) if callable(self.change) else self.change)
        if changed.shape != x.shape:
            raise ValueError(
                f"edit at {self.site} gives {changed.shape}; the activation is {x.shape}"
            )
        return changed.astype(x.dtype)


class Editor:
    """The edits of one forward pass over a stack of `layers` blocks."""

    def __init__(self, edits: Sequence[Edit], layers: int):
        for edit in edits:
            if edit.layer is not None and not 0 <= edit.layer < layers:
                raise ValueError(
                    f"edit at {edit.site} {edit.layer}: the stack has layers 0..{layers - 1}"
                )
        names = [edit.tap for edit in edits if edit.tap]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"edits tap {sorted(twice)} more than once; give each its own name")
        self.edits, self.count = edits, layers

    def runs(self) -> list[tuple[int, int]]:
        """Consecutive layer ranges (start, stop) such that every edited block stands alone."""
        edited = {edit.layer for edit in self.edits if edit.layer is not None}
        cuts = sorted({0, self.count, *edited, *(layer + 1 for layer in edited)})
        return list(itertools.pairwise(cuts))

    def apply(self, site: Site, layer: int | None, x: Hidden, taps: Taps) -> Hidden:
        """`x` after every edit of this place, in the order given; fills `taps`."""
        for edit in self.edits:
            if edit.site == site and edit.layer == layer:
                with jax.named_scope("edit"):
                    x = edit(x)
                if edit.tap:
                    taps[edit.tap] = x
        return x
