"""Taps and injections: reading or changing activations at named places of the Llama stack.

Without edits the stack is one scan and its program is untouched. With edits, the edited layers are cut
out of the scan and run on their own; all others stay scanned.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Array, Float

Site = Literal["input_emb", "block_in", "attn_out", "ffn_out", "last_hidden"]
LAYER_SITES = ("block_in", "attn_out", "ffn_out")
Hidden = Float[Array, "B S D"]


@dataclass(frozen=True)
class Edit:
    """One place to read from or write to."""

    site: Site
    layer: int | None = None
    """Block index for `block_in`, `attn_out` and `ffn_out`; None for the two ends."""
    change: Callable[[Hidden], Hidden] | None = None
    """What replaces the activation; None leaves it."""
    tap: str = ""
    """Name under which the (changed) activation is returned; empty returns nothing."""

    def __post_init__(self) -> None:
        if (self.site in LAYER_SITES) != (self.layer is not None):
            raise ValueError(
                f"edit at {self.site}: a layer goes with {LAYER_SITES}, and only there"
            )


class Editor:
    """Applies edits while a forward pass is traced and collects the taps."""

    def __init__(self, edits: Sequence[Edit], layers: int):
        if bad := [e for e in edits if e.layer is not None and not 0 <= e.layer < layers]:
            raise ValueError(f"edit {bad[0]}: the stack has layers 0..{layers - 1}")
        self.edits = edits
        self.taps: dict[str, Hidden] = {}

    @property
    def layers(self) -> list[int]:
        """Blocks that must be cut out of the scan, ascending."""
        return sorted({e.layer for e in self.edits if e.layer is not None})

    def __call__(self, site: Site, layer: int | None, x: Hidden) -> Hidden:
        """The activation after every edit of this place, in the order given."""
        for edit in self.edits:
            if edit.site == site and edit.layer == layer:
                x = edit.change(x) if edit.change else x
                if edit.tap:
                    self.taps[edit.tap] = x
        return x
