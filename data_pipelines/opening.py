"""A first stretch of the sample stream with a mixture of its own."""

from dataclasses import dataclass
from typing import Protocol


class RowPlan(Protocol):
    """Which records make up a row, as a pure function of its number.

    A row holds items; without packing one, which has the number of the row.
    """

    def items(self, row: int) -> list[int]:
        """Numbers of the items of row `row` >= 0."""
        ...

    def room(self, item: int) -> list[int] | None:
        """Room of an item in its row by `pack_sizes.KINDS`; None for all of it."""
        ...

    def rows(self, index: int) -> list[int]:
        """Record numbers of item `index` >= 0 in the order in which they are asked."""
        ...

    def length(self, row: int) -> int | None:
        """Positions of row `row`, the same in all of its batch; None for `data.seq_len`."""
        ...

    def decodes(self, row: int) -> bool:
        """Whether the references of row `row` are learnt, or only the text around them."""
        ...


@dataclass(frozen=True, kw_only=True)
class Opening:
    """Rows of one plan up to a number, then rows of another; neither is packed.

    A model from scratch learns to name what it sees far sooner from answers about single regions
    than beside the louder gradients of boxes and masks, as published recipes begin with a stage of
    captions. Here the stage is part of the stream: no second run, no second state. Answers that refer
    may take part: they are learnt as text, and their references are not decoded.
    """

    first: RowPlan
    then: RowPlan
    rows_of_first: int

    def items(self, row: int) -> list[int]:
        """The row itself."""
        return [row]

    def room(self, item: int) -> list[int] | None:
        """All of the row."""
        return None

    def length(self, row: int) -> int | None:
        """All rows are of one length."""
        return None

    def decodes(self, row: int) -> bool:
        """The opening teaches text alone."""
        return row >= self.rows_of_first

    def rows(self, index: int) -> list[int]:
        """Records of a row, from the plan whose turn it is."""
        return (self.first if index < self.rows_of_first else self.then).rows(index)
