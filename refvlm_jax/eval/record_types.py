"""Prediction and truth records: what evaluation exchanges between the device and the scorers.

Coordinates are pixels of the original picture, float, unrounded and not clipped; boxes are
x1, y1, x2, y2. Masks are compressed COCO run-length strings with their size [height, width].
"""

from dataclasses import dataclass, field
from typing import Any

from refvlm_jax.trp.format import AnswerStyle

Box = tuple[float, float, float, float]
Rle = dict[str, Any]
"""{"size": [height, width], "counts": compressed string}."""


@dataclass(frozen=True, kw_only=True)
class DepthMap:
    """Depth of the picture as a 16-bit PNG: value = sample * scale + offset."""

    path: str = ""
    """File; relative to the record's own file where that is on disk. Empty: see `png`."""
    png: str = ""
    """The PNG itself in base64, for maps without a file."""
    scale: float
    offset: float = 0.0
    invalid: int = 0
    """Sample of pixels whose depth is unknown."""
    kind: str = "metric"
    """metric (metres), or relative (inverse depth up to scale and shift)."""


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One decoded or annotated object."""

    box: Box | None = None
    rle: Rle | None = None
    keypoints: list[list[float]] | None = None
    """x, y and visibility of every joint: 0 unlabelled, 1 hidden or 2 visible in a truth, the
    probability of being visible in a prediction. Empty for a person without labelled joints."""
    depth: DepthMap | None = None
    score: float = 1.0
    """Ranking confidence; 1 for truth."""
    score_parts: dict[str, float] = field(default_factory=dict)
    """What the score was made of (phrase, ref, decoder), kept for later calibration."""


@dataclass(frozen=True, kw_only=True)
class Triplet:
    """A phrase of the answer, its unit, and the objects it refers to."""

    phrase: str
    unit: str
    """box, mask, ...; empty when the answer names none."""
    char_span: tuple[int, int]
    """Range of the phrase in the plain answer, in code points."""
    instances: list[Instance] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer of a model to one question."""

    uid: str
    task_id: str
    image: str
    """Path relative to the image root."""
    width: int
    height: int
    raw: str
    """The answer with tags, enough to score everything about the text again."""
    plain: str
    """The answer without planning block, tags and groups."""
    finish: str
    """eos, or length when the answer was cut."""
    n_tokens: int
    plan: list[dict[str, Any]] = field(default_factory=list)
    """Lines of the planning block: name, unit, num."""
    triplets: list[Triplet] = field(default_factory=list)
    prompt: str = ""
    turn: int = 0
    template_id: int = 0
    model: str = ""
    """Hash of the checkpoint."""
    gen: dict[str, Any] = field(default_factory=dict)
    """Generation settings."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A question with its ground truth."""

    uid: str
    task_id: str
    image: str
    """Path relative to the image root."""
    width: int
    height: int
    question: str
    answer: str
    """Plain text."""
    raw: str
    """The answer rendered with tags."""
    references: list[str] = field(default_factory=list)
    """Every acceptable text; empty means `answer` alone."""
    triplets: list[Triplet] = field(default_factory=list)
    ignore: list[Instance] = field(default_factory=list)
    """Crowd regions: what is found inside them counts neither for nor against."""
    image_id: int | str = 0
    """The dataset's own id of the picture, a number or a name, for tables of other tools. Scorers
    tell pictures apart by `image`."""
    style: AnswerStyle = "plan"
    """How the answer was asked to refer (see `refvlm_jax.trp.format`)."""

    @property
    def texts(self) -> list[str]:
        """The acceptable texts, at least one."""
        return self.references or [self.answer]


def first_box(record: Prediction | Truth) -> Box | None:
    """The first box of a record in text order."""
    return next((i.box for i in instances(record) if i.box is not None), None)


def first_mask(record: Prediction | Truth) -> Rle | None:
    """The first mask of a record in text order."""
    return next((i.rle for i in instances(record) if i.rle is not None), None)


def instances(record: Prediction | Truth) -> list[Instance]:
    """All objects of a record in text order."""
    return [instance for triplet in record.triplets for instance in triplet.instances]
