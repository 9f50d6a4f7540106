"""The bundle's ragged inputs as arrays: sentinels expanded, cut to `cutoff_len`, references found.

Shape legend: `B` samples, `T` recorded ids, `S` positions after expansion, `R` references of the
sample that has most of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refvlm_jax.batch import TEXT
from refvlm_jax.ckpt.convert.tensors import ConvertError
from refvlm_jax.trp.tokens import (
    IGNORE_ID,
    IMAGE_ID,
    PHRASE_CLOSE,
    PHRASE_OPEN,
    PROMPT_ID,
    REF,
    UNIT_CLOSE,
    UNIT_OPEN,
)

MARKS = {REF: 1, UNIT_OPEN: 2, UNIT_CLOSE: 3, PHRASE_OPEN: 4, PHRASE_CLOSE: 5}
"""The reference's code of each kind of position; 0 is any other text."""
IMAGE_MARK, PROMPT_MARK = 6, 7


@dataclass(frozen=True)
class Sequences:
    """What the language model reads; every array is [B, S]."""

    tokens: np.ndarray
    labels: np.ndarray
    marks: np.ndarray
    real: np.ndarray
    """False in the padding."""
    positions: np.ndarray
    visual_index: np.ndarray
    """TEXT, or an index into all image tokens of the batch, then the sample's prompt tokens."""
    prompts: tuple[int, ...]
    """Region prompts of each sample."""


@dataclass(frozen=True)
class References:
    """The `<REF>` tokens of every sample in text order; arrays are [B, R]."""

    pos: np.ndarray
    valid: np.ndarray
    group: np.ndarray
    units: tuple[str | None, ...] | None
    """Unit of each sample; None: every decoder decodes all."""
    listed: tuple[int, ...]
    """Targets each sample came with, also those whose reference was cut off."""

    def of(self, names: Sequence[str]) -> np.ndarray:
        """Which samples a decoder of these units answers."""
        if self.units is None:
            return np.ones(len(self.pos), np.bool_)
        return np.array([unit in names for unit in self.units])

    def targets(self, values: np.ndarray, names: Sequence[str], what: str) -> np.ndarray:
        """Recorded targets, listed over the samples that carry them, as [B, R, ...].

        Raises:
          ConvertError: there are more or fewer of them than the samples list.
        """
        chosen = self.of(names)
        counts = [n if chosen[b] else 0 for b, n in enumerate(self.listed)]
        if sum(counts) != len(values):
            raise ConvertError(
                f"in.{what} holds {len(values)} targets, but decode_seqs lists {sum(counts)} for "
                f"samples of unit {' or '.join(names)}; record the bundle again"
            )
        found = np.zeros((*self.pos.shape, *values.shape[1:]), values.dtype)
        for b, stop in enumerate(np.cumsum(counts)):
            own = values[stop - counts[b] : stop][: int(self.valid[b].sum())]
            found[b, : len(own)] = own
        return found


def expand(
    config: Mapping[str, Any], inputs: Mapping[str, np.ndarray], patches: int, prompt_tokens: int
) -> Sequences:
    """Replaces sentinels by visual positions.

    Args:
      patches: tokens of a picture.
      prompt_tokens: tokens of a region prompt; 0 without an encoder.
    """
    ids = inputs["input_ids"]
    labels = inputs.get("labels", np.full(ids.shape, IGNORE_ID, np.int32))
    keep = inputs.get("attention_mask", np.ones(ids.shape)).astype(np.bool_)
    marks = {config["special_token_ids"][token]: mark for token, mark in MARKS.items()}
    rows, prompts, image = [], [], 0
    for b in range(len(ids)):
        row = _Row(marks, patches, prompt_tokens, image, len(ids) * patches)
        for token, label in zip(ids[b][keep[b]], labels[b][keep[b]], strict=True):
            row.add(int(token), int(label))
        rows.append(row)
        prompts.append(row.prompts)
        # A sample without the sentinel has a picture all the same, which nothing reads.
        image += max(row.images, 1)
    length = max(len(row.tokens) for row in rows)
    cutoff = config.get("cutoff_len")
    length = min(length, cutoff) if cutoff else length
    arrays = {
        name: np.stack([_fit(getattr(row, name), length, fill) for row in rows])
        for name, fill in {
            "tokens": 0,
            "labels": IGNORE_ID,
            "marks": 0,
            "visual_index": TEXT,
        }.items()
    }
    real = np.stack([np.arange(length) < len(row.tokens) for row in rows])
    positions = np.where(real, np.arange(length), 0)
    return Sequences(real=real, positions=positions, prompts=tuple(prompts), **arrays)


class _Row:
    """One sample while it is expanded."""

    def __init__(
        self, marks: Mapping[int, int], patches: int, prompt_tokens: int, image: int, after: int
    ):
        self.tokens: list[int] = []
        self.labels: list[int] = []
        self.marks: list[int] = []
        self.visual_index: list[int] = []
        self.images = self.prompts = 0
        self._marks, self._patches, self._prompt_tokens = marks, patches, prompt_tokens
        self._image, self._after = image, after

    def add(self, token: int, label: int) -> None:
        """Appends a token, or all positions of a sentinel."""
        if token == IMAGE_ID:
            first = (self._image + self.images) * self._patches
            self._visual(first, self._patches, IMAGE_MARK)
            self.images += 1
        elif token == PROMPT_ID:
            first = self._after + self.prompts * self._prompt_tokens
            self._visual(first, self._prompt_tokens, PROMPT_MARK)
            self.prompts += 1
        else:
            self._extend([token], [label], [self._marks.get(token, 0)], [TEXT])

    def _visual(self, first: int, count: int, mark: int) -> None:
        index = list(range(first, first + count))
        self._extend([0] * count, [IGNORE_ID] * count, [mark] * count, index)

    def _extend(self, *values: list[int]) -> None:
        for mine, more in zip(
            (self.tokens, self.labels, self.marks, self.visual_index), values, strict=True
        ):
            mine += more


def _fit(values: list[int], length: int, fill: int) -> np.ndarray:
    cut = values[:length]
    return np.array(cut + [fill] * (length - len(cut)), np.int32)


def references(config: Mapping[str, Any], sequences: Sequences) -> References:
    """Finds the references that were not cut off; `decode_seqs` loses its last ones."""
    places = [np.flatnonzero(row == MARKS[REF]) for row in sequences.marks]
    count = max([1, *(len(p) for p in places)])
    pos = np.zeros((len(places), count), np.int32)
    valid, group = np.zeros(pos.shape, np.bool_), np.full(pos.shape, -1, np.int32)
    seqs = config.get("decode_seqs") or [None] * len(places)
    listed = []
    for b, at in enumerate(places):
        pos[b, : len(at)], valid[b, : len(at)] = at, True
        numbers = [g for g, seq in enumerate(seqs[b] or []) for _ in seq]
        listed.append(len(numbers))
        groups = numbers if numbers else _groups_in_text(sequences.marks[b], at)
        own = groups[: len(at)]
        group[b, : len(own)] = own
    units = config.get("decode_units")
    return References(pos, valid, group, None if units is None else tuple(units), tuple(listed))


def _groups_in_text(marks: np.ndarray, places: np.ndarray) -> list[int]:
    """A closed phrase or unit between two references begins a new group."""
    closed = np.cumsum(np.isin(marks, (MARKS[PHRASE_CLOSE], MARKS[UNIT_CLOSE])))[places]
    return np.unique(closed, return_inverse=True)[1].tolist()
