"""The Dialog record: one dialogue about at most one picture, with everything it refers to.

Plain data with a fixed msgpack encoding. Text and geometry are separate: answers are plain text and
spans point into them, so no placeholder is ever substituted. Coordinates are pixels of the stored
picture, float, unrounded. Offsets count Unicode code points.
"""

import dataclasses
import enum
import functools
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgpack

from refvlm_jax.trp.tokens import Unit

SCHEMA_VERSION = 1
T = TypeVar("T")
_MOST = 1 << 63  # whole numbers of msgpack end here


class PromptKind(enum.IntEnum):
    """How a person points at a region in the question."""

    POINT = 0
    BOX = 1
    SCRIBBLE = 2
    MASK = 3


@dataclass(kw_only=True)
class Mask:
    """COCO run-length mask: column-major, with its own size (same aspect as the picture)."""

    h: int
    w: int
    counts: bytes
    """Compressed COCO RLE string."""
    origin: str = "polygon"
    """polygon | rle | labelmap | scribble | point | box."""


@dataclass(kw_only=True)
class Depth:
    """Depth of every pixel of the picture as a one-channel 16-bit PNG of the picture's size.

    value = sample * scale + offset, unknown where the sample is `invalid`.
    """

    scale: float
    path: str = ""
    """File under the image root, unless the record holds its bytes."""
    offset: float = 0.0
    kind: str = "metric"
    """metric (metres) | relative (inverse depth up to scale and shift)."""
    invalid: int = 0
    data: bytes | None = None


@dataclass(kw_only=True)
class MediaRef:
    """The picture of a dialogue: a file under the image root, or encoded bytes held in the record."""

    path: str
    width: int
    height: int
    data: bytes | None = None
    sha256: str = ""


@dataclass(kw_only=True)
class Region:
    """Something that can be referred to, as a prompt or as a target; its id is its list index."""

    category: str = ""
    box: tuple[float, float, float, float] | None = None
    """x1, y1, x2, y2."""
    point: tuple[float, float] | None = None
    mask: Mask | None = None
    keypoints: list[list[float]] | None = None
    """[K, 3] x, y, v; v in {0, 1, 2}. Empty for a person without a labelled joint, who is never a
    target but kept so that scoring can ignore what is found there."""
    depth: Depth | None = None
    is_crowd: bool = False
    no_mask_loss: bool = False
    """The mask vanishes at the training grid: its text is supervised, its pixels are not."""


@dataclass(kw_only=True)
class Prompt:
    """A region shown in the question; prompts fill the template's region slots in order."""

    region: int
    kind: PromptKind


@dataclass(kw_only=True)
class Span:
    """A triplet: `answer[start:end]` is the phrase, decoded by `unit` into the target regions."""

    start: int
    end: int
    unit: Unit
    targets: list[int]


@dataclass(kw_only=True)
class Turn:
    """One question and its answer.

    The question is either `literal` text (with one `[VPT]` a prompt) or a call of template bank
    `bank` with `slots`, rendered with a stateless generator at load time.
    """

    task_name: str
    """Task command name, a key of `refvlm_jax.trp.commands.COMMANDS`."""
    answer: str
    bank: str = ""
    slots: dict[str, str] = field(default_factory=dict)
    literal: str = ""
    prompts: list[Prompt] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    """All acceptable answers, for scoring only (captions, VQA)."""
    supervise: bool = True


@dataclass(kw_only=True)
class Dialog:
    """One sample of VT-Instruct."""

    uid: str
    """`<source>/<split>/<native id>/<variant>`, unique in a dataset."""
    source: str
    split: str
    task_id: str
    """T01..T25 (`data_pipelines.tasks`)."""
    turns: list[Turn]
    image: MediaRef | None = None
    regions: list[Region] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    """eval_only | empty_target | crowd_present | overflow."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Native ids and anything a scorer needs (for example image_id, annotation ids)."""
    schema_version: int = SCHEMA_VERSION


def encode(dialog: Dialog) -> bytes:
    """Serialises a dialogue to msgpack."""
    return msgpack.packb(dialog, default=vars, use_bin_type=True)


def decode(data: bytes) -> Dialog:
    """Restores a dialogue.

    Raises:
      ValueError: the bytes are not a Dialog of this schema version.
    """
    try:
        raw = msgpack.unpackb(data, raw=False, strict_map_key=False)
    except Exception as error:  # msgpack raises several unrelated types
        raise ValueError(f"not a Dialog record: {error}") from error
    if not isinstance(raw, dict) or raw.get("schema_version") != SCHEMA_VERSION:
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        raise ValueError(f"Dialog schema version {version}, expected {SCHEMA_VERSION}")
    try:
        return _from_raw(raw)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"malformed Dialog record {raw.get('uid')!r}: {error}") from error


def _from_raw(raw: dict[str, Any]) -> Dialog:
    image = raw.pop("image")
    regions = [_region(r) for r in raw.pop("regions")]
    turns = [_turn(t) for t in raw.pop("turns")]
    media = _typed(MediaRef, image) if image is not None else None
    return _typed(Dialog, {**raw, "image": media, "regions": regions, "turns": turns})


def _region(raw: dict[str, Any]) -> Region:
    mask, box, point = raw.pop("mask"), raw.pop("box"), raw.pop("point")
    depth = raw.pop("depth", None)
    made = {
        "depth": _typed(Depth, depth) if depth is not None else None,
        "mask": _typed(Mask, mask) if mask is not None else None,
        "box": tuple(box) if box is not None else None,
        "point": tuple(point) if point is not None else None,
    }
    return _typed(Region, {**raw, **made})


def _turn(raw: dict[str, Any]) -> Turn:
    prompts = [_typed(Prompt, {**p, "kind": PromptKind(p["kind"])}) for p in raw.pop("prompts")]
    spans = [_typed(Span, {**s, "unit": Unit(s["unit"])}) for s in raw.pop("spans")]
    return _typed(Turn, {**raw, "prompts": prompts, "spans": spans})


def _typed(cls: type[T], values: dict[str, Any]) -> T:
    """An instance of a record class whose values are of the types it says; TypeError otherwise."""
    made = cls(**values)
    if problem := _misfit(made):
        raise TypeError(problem)
    return made


def type_problem(dialog: Dialog) -> str | None:
    """The first value of a record that is not of the type its class says, or None."""
    parts: list[Any] = [dialog, dialog.image]
    for part in parts:  # what was looked through already says that the next ones are there
        if part is not None and (problem := _misfit(part)):
            return problem
    for region in dialog.regions:
        parts += [region, region.mask, region.depth]
    for turn in dialog.turns:
        parts += [turn]
    nested = [p for turn in dialog.turns if not _misfit(turn) for p in (*turn.prompts, *turn.spans)]
    found = (_misfit(part) for part in (*parts, *nested) if part is not None)
    return next((problem for problem in found if problem), None)


def _misfit(made: Any) -> str | None:
    cls: Any = type(made)
    for name, fits, hint in _checks(cls):
        if not fits(value := getattr(made, name)):
            wanted = getattr(hint, "__name__", hint)
            return f"{type(made).__name__}.{name} is {value!r:.60}, expected {wanted}"
    return None


@functools.cache
def _checks(cls: Any) -> list[tuple[str, Callable[[Any], bool], Any]]:
    hints = typing.get_type_hints(cls)
    return [(name, _fits_hint(hint), hint) for name, hint in hints.items()]


@functools.cache
def _fits_hint(hint: Any) -> Callable[[Any], bool]:
    """Whether a value is of a type, as a function made once a type: a build asks a million times.

    Of tuples there are those of one type, of unions those with None.
    """
    if hint in (simple := {Any: _is_plain, str: _is_text, int: _is_whole, float: _is_number}):
        return simple[hint]
    origin, inner = typing.get_origin(hint), [_fits_hint(arg) for arg in typing.get_args(hint)]
    if origin is list:
        (item,) = inner
        return lambda value: isinstance(value, list | tuple) and all(map(item, value))
    if origin is tuple:
        (item,), length = set(inner), len(inner)
        return lambda value: (
            isinstance(value, list | tuple) and len(value) == length and all(map(item, value))
        )
    if origin is dict:
        key, item = inner
        return lambda value: (
            isinstance(value, dict) and all(map(key, value)) and all(map(item, value.values()))
        )
    if origin is types.UnionType:
        (fits,) = (_fits_hint(arg) for arg in typing.get_args(hint) if arg is not types.NoneType)
        return lambda value: value is None or fits(value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return lambda value: isinstance(value, hint)
    return lambda value: isinstance(value, hint) and _is_plain(value)


def _is_text(value: Any) -> bool:
    # Most text is ASCII, which needs no second look.
    return isinstance(value, str) and (value.isascii() or _is_plain(value))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and type(value) is not bool and -_MOST < value < _MOST


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_whole(value)


def _is_plain(value: Any) -> bool:
    """Whether msgpack can hold it; text is UTF-8, so that half a surrogate pair is none."""
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)
    if isinstance(value, dict):
        return all(_is_plain(k) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, int):
        return abs(value) < _MOST
    if isinstance(value, float):  # an id, say, that is not even equal to itself
        return math.isfinite(value)
    return value is None or isinstance(value, bytes) or dataclasses.is_dataclass(value)
