"""How dialogues become rows: options, and the error of those that cannot."""

from dataclasses import dataclass, field
from typing import Literal

from refvlm_jax.batch import BatchSpec
from refvlm_jax.config.schema import AugmentConfig


class EncodeError(ValueError):
    """A dialogue cannot become a row; the message names it and the remedy."""


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How dialogues are rendered and into which sizes."""

    spec: BatchSpec
    register: Literal["ref", "coord"] = "ref"
    """`<REF>` tokens for unit decoders; or coordinates as text, without command and plan."""
    plan: bool = True
    """Answers open with the plan block."""
    shared_picture: bool = False
    """The picture opens the row, and the dialogues of the row see it but not each other. Otherwise
    they are turns of one conversation whose first question holds the picture, as released."""
    templates: int = 0
    """Questions are drawn from the first so many templates of a bank; 0 for all."""
    longest_template: bool = False
    """Always the longest question template that may be drawn: what packing keeps room for."""
    fixed_template: bool = False
    """Always the first question template, as evaluation asks."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes of training rows."""
