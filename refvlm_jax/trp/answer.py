"""The structure read back from a written answer; every field is best effort for malformed text."""

from dataclasses import dataclass, field

from refvlm_jax.trp.tokens import Unit


@dataclass(frozen=True)
class PlanLine:
    """One line of the planning block."""

    name: str
    """Phrase, whitespace collapsed."""
    unit_text: str
    num: int


@dataclass
class ParsedGroup:
    """Consecutive references with the phrase and the unit they belong to."""

    phrase: str | None
    """Text between the phrase tags, whitespace collapsed; None where no phrase precedes."""
    start: int
    end: int
    """Range of the phrase in `ParsedAnswer.plain`, exact; empty when there is no phrase."""
    unit: Unit | None
    """None for a missing or unknown unit."""
    unit_text: str
    indices: list[int] = field(default_factory=list)
    """The numbers written before the references; shorter than `ref_count` if some are missing."""
    ref_count: int = 0
    first_ref: int = 0
    """Ordinal of its first `<REF>` among all of the text; groups partition them in order."""


@dataclass
class ParsedAnswer:
    """An answer taken apart."""

    plan: list[PlanLine] | None = None
    """Lines of the planning block; None without a block."""
    has_plan: bool | None = None
    """The flag of `Unit decode (True)` or `(False)`; None when it was not written."""
    plain: str = ""
    """The body without tags and groups."""
    groups: list[ParsedGroup] = field(default_factory=list)
    """Groups with at least one reference, in text order."""
    ref_count: int = 0
    warnings: list[str] = field(default_factory=list)
    """What departs from the grammar; empty for a well-formed answer."""


def collapse(text: str) -> str:
    """`text` with every run of whitespace as one blank and none at its ends."""
    return " ".join(text.split())
