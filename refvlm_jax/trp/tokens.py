"""Tokens, units and sentinels of the triplet-based referring paradigm (TRP, arXiv 2503.07413).

Everything here is a wire-format constant: training, generation, evaluation and serving share it.
Token ids are always resolved by name from a tokenizer, never written down.
"""

import enum

TASK_OPEN, TASK_CLOSE = "<Task>", "</Task>"
UNIT_OPEN, UNIT_CLOSE = "<Unit>", "</Unit>"
PHRASE_OPEN, PHRASE_CLOSE = "<Phrase>", "</Phrase>"
REF = "<REF>"

# Order of addition to a tokenizer. `<v>`, `</v>` and `<VRT>` are never produced; they only keep the
# ids of released checkpoints in place.
SPECIAL_TOKENS = (
    TASK_OPEN,
    TASK_CLOSE,
    UNIT_OPEN,
    UNIT_CLOSE,
    "<v>",
    "</v>",
    PHRASE_OPEN,
    PHRASE_CLOSE,
    "<VRT>",
    REF,
)

IMAGE_SLOT = "<image>"  # text marker of the picture; becomes IMAGE_ID
PROMPT_SLOT = "[VPT]"  # text marker of a region prompt; becomes PROMPT_ID
# Strings that free text must not contain: they would be read as structure.
RESERVED = (*SPECIAL_TOKENS, IMAGE_SLOT, PROMPT_SLOT)

IMAGE_ID = -200
PROMPT_ID = -300
IGNORE_ID = -100


class Unit(enum.IntEnum):
    """What a `<REF>` token decodes to; the integer travels in `Batch.ref_unit`."""

    NONE = 0
    BOX = 1
    MASK = 2
    POINT = 3
    KEYPOINT = 4
    DEPTH = 5

    @property
    def text(self) -> str:
        """The name written between `<Unit>` tags."""
        return self.name.lower()

    @classmethod
    def from_text(cls, name: str) -> "Unit | None":
        """The unit called `name` in an answer, or None for an unknown or empty name."""
        member = cls.__members__.get(name.strip().upper())
        return None if member is cls.NONE else member
