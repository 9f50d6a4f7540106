"""From dialogues to a row of the static batch.

A row is one conversation about one picture: `<s>` prompt answer `</s>` separator, turn after turn. The
picture and every region prompt are expanded in place; each `<REF>` gets an entry in the reference table.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from data_pipelines import templates
from data_pipelines.images import load_image, to_square
from data_pipelines.rasterise import prompt_mask, target_mask
from data_pipelines.records import Dialog, Prompt, Region, Turn
from data_pipelines.tokenizer import Tokenizer
from refvlm_jax.batch import BatchSpec, empty_row
from refvlm_jax.geometry import PaddedSquare
from refvlm_jax.trp.coords import render_answer_coords
from refvlm_jax.trp.prompt import TURN_SEPARATOR, split_slots, turn_prompt
from refvlm_jax.trp.render import render_answer
from refvlm_jax.trp.spans import TextSpan, closing_order
from refvlm_jax.trp.tokens import IGNORE_ID, IMAGE_SLOT, PROMPT_SLOT, REF, Unit

Row = dict[str, np.ndarray]


class EncodeError(ValueError):
    """A dialogue cannot become a row; the message names it."""


@dataclass(frozen=True)
class EncodeOptions:
    """How dialogues are rendered."""

    spec: BatchSpec
    register: Literal["ref", "coord"] = "ref"
    """`<REF>` tokens for unit decoders, or coordinates written as text."""
    plan: bool = True
    """Answers open with the plan block."""
    fixed_template: bool = False
    """Always the first question template, as evaluation asks."""


@dataclass(frozen=True)
class Reference:
    """One `<REF>` of a draft."""

    region: int
    unit: Unit
    group: int


@dataclass(frozen=True)
class Draft:
    """A row while turns are appended to it; appending gives a new draft."""

    tokens: tuple[int, ...] = ()
    labels: tuple[int, ...] = ()
    visual: tuple[int, ...] = ()
    """`Batch.visual_index` of every position so far."""
    prompts: tuple[Prompt, ...] = ()
    refs: tuple[Reference, ...] = ()

    def text(self, ids: Sequence[int], *, supervised: bool = False) -> "Draft":
        """With text tokens appended."""
        labels = tuple(ids) if supervised else (IGNORE_ID,) * len(ids)
        return replace(
            self,
            tokens=self.tokens + tuple(ids),
            labels=self.labels + labels,
            visual=self.visual + (-1,) * len(ids),
        )

    def expand(self, first: int, count: int) -> "Draft":
        """With `count` visual tokens appended, starting at index `first` of the row's."""
        return replace(
            self,
            tokens=self.tokens + (0,) * count,
            labels=self.labels + (IGNORE_ID,) * count,
            visual=self.visual + tuple(range(first, first + count)),
        )


@dataclass
class _Writer:
    """Appends turns about one picture to drafts."""

    tokenizer: Tokenizer
    options: EncodeOptions
    regions: Sequence[Region]
    square: PaddedSquare | None
    rng: np.random.Generator | None = None
    questions: dict[int, str] = field(default_factory=dict)
    """Rendered questions by turn, so that a shortened turn keeps its question."""

    def append(self, draft: Draft, turn: Turn, number: int, *, answer: bool = True) -> Draft | None:
        """The draft with one more turn, or None when it exceeds the row's sizes."""
        new = self._ask(draft, turn, number)
        if answer:
            new = self._answer(new, turn)
        spec = self.options.spec
        masks = sum(self.has_mask(ref) for ref in new.refs)
        fits = (
            len(new.tokens) <= spec.seq_len
            and len(new.prompts) <= spec.prompts
            and len(new.refs) <= spec.refs
            and masks <= spec.mask_refs
        )
        return new if fits else None

    def has_mask(self, ref: Reference) -> bool:
        """Whether the reference has a mask to learn from."""
        region = self.regions[ref.region]
        return ref.unit is Unit.MASK and region.mask is not None and not region.no_mask_loss

    def _ask(self, draft: Draft, turn: Turn, number: int) -> Draft:
        question = self.questions.setdefault(number, self._question(turn))
        first, spec = number == 0, self.options.spec
        image = first and self.square is not None
        text = turn_prompt(turn.task_name, question, first=first, image=image)
        pieces = split_slots(text)
        if pieces.count(PROMPT_SLOT) != len(turn.prompts):
            raise EncodeError(
                f"question {question!r} has {pieces.count(PROMPT_SLOT)} region slots for "
                f"{len(turn.prompts)} prompts; they must agree"
            )
        draft, shown = draft.text([self.tokenizer.bos_id]), iter(turn.prompts)
        for piece in pieces:
            if piece == IMAGE_SLOT:
                draft = draft.expand(0, spec.image_tokens)
            elif piece == PROMPT_SLOT:
                place = spec.images * spec.image_tokens + len(draft.prompts) * spec.prompt_tokens
                draft = draft.expand(place, spec.prompt_tokens)
                draft = replace(draft, prompts=(*draft.prompts, next(shown)))
            else:
                draft = draft.text(self.tokenizer.encode(piece))
        return draft

    def _question(self, turn: Turn) -> str:
        if turn.literal:
            return turn.literal
        rng = None if self.options.fixed_template else self.rng
        return templates.render(turn.bank, turn.slots, register=self.options.register, rng=rng)

    def _answer(self, draft: Draft, turn: Turn) -> Draft:
        spans = [TextSpan(s.start, s.end, s.unit, len(s.targets)) for s in turn.spans]
        if self.options.register == "coord":
            text = render_answer_coords(
                turn.answer, spans, [self._boxes(s.targets) for s in turn.spans]
            )
        else:
            text = render_answer(turn.answer, spans, plan=self.options.plan).text
            draft = self._refer(draft, turn, closing_order(spans))
        ids = [*self.tokenizer.encode(text), self.tokenizer.eos_id]
        draft = draft.text(ids, supervised=turn.supervise)
        return draft.text(self.tokenizer.encode(TURN_SEPARATOR))

    def _refer(self, draft: Draft, turn: Turn, order: Sequence[int]) -> Draft:
        group = draft.refs[-1].group + 1 if draft.refs else 0
        new = [
            Reference(target, turn.spans[index].unit, group + step)
            for step, index in enumerate(order)
            for target in turn.spans[index].targets
        ]
        return replace(draft, refs=(*draft.refs, *new))

    def _boxes(self, targets: Sequence[int]) -> list[list[float]]:
        """Boxes [n, 4] x1, y1, x2, y2 as fractions of the padded square."""
        assert self.square is not None
        boxes = np.array([self.regions[t].box for t in targets], np.float64)
        offset = np.array([self.square.offset_x, self.square.offset_y] * 2)
        return ((boxes + offset) / self.square.side).tolist()


def encode_row(
    dialogs: Sequence[Dialog],
    image_root: Path,
    tokenizer: Tokenizer,
    options: EncodeOptions,
    rng: np.random.Generator | None,
) -> Row:
    """One training row from dialogues about the same picture, merged into one conversation.

    Whole trailing turns that do not fit are left out. A first turn that alone is too long loses its
    last groups; its plan is rendered again, so that counts stay true.

    Raises:
      EncodeError: not even the question fits, or an answer without groups is too long.
      ImageError: the picture cannot be read.
    """
    turns, regions = merge(dialogs)
    writer = _Writer(tokenizer, options, regions, _square(dialogs[0]), rng)
    draft = Draft()
    for number, turn in enumerate(turns):
        longer = writer.append(draft, turn, number)
        if longer is None:
            break
        draft = longer
    if not draft.tokens:
        draft = _shortened(writer, turns[0], dialogs[0].uid)
    return _fill(writer, draft, dialogs[0], image_root)


def encode_prompt(
    dialog: Dialog, turn: int, image_root: Path, tokenizer: Tokenizer, options: EncodeOptions
) -> Row:
    """The row that asks turn `turn`: history with its answers, then the question, no answer."""
    options = replace(options, fixed_template=True)
    writer = _Writer(tokenizer, options, dialog.regions, _square(dialog))
    draft = Draft()
    for number, asked in enumerate(dialog.turns[: turn + 1]):
        longer = writer.append(draft, asked, number, answer=number < turn)
        if longer is None:
            raise EncodeError(
                f"{dialog.uid}: the question of turn {turn} does not fit into "
                f"{options.spec.seq_len} positions; raise data.seq_len"
            )
        draft = longer
    row = _fill(writer, draft, dialog, image_root)
    row["labels"][:] = IGNORE_ID
    return row


def merge(dialogs: Sequence[Dialog]) -> tuple[list[Turn], list[Region]]:
    """All turns in order, over one list of regions."""
    turns: list[Turn] = []
    regions: list[Region] = []
    for dialog in dialogs:
        shift = len(regions)
        regions += dialog.regions
        for turn in dialog.turns:
            prompts = [replace(p, region=p.region + shift) for p in turn.prompts]
            spans = [replace(s, targets=[t + shift for t in s.targets]) for s in turn.spans]
            turns.append(replace(turn, prompts=prompts, spans=spans))
    return turns, regions


def _square(dialog: Dialog) -> PaddedSquare | None:
    if dialog.image is None:
        return None
    return PaddedSquare(dialog.image.width, dialog.image.height)


def _shortened(writer: _Writer, turn: Turn, uid: str) -> Draft:
    """The first turn cut before the first group that does not fit."""
    spans = sorted(turn.spans, key=lambda s: (s.end, -s.start))
    for keep in range(len(spans) - 1, 0, -1):
        cut = replace(turn, answer=turn.answer[: spans[keep - 1].end], spans=spans[:keep])
        draft = writer.append(Draft(), cut, 0)
        if draft is not None:
            return draft
    raise EncodeError(
        f"{uid}: the first turn does not fit into {writer.options.spec.seq_len} positions; raise "
        "data.seq_len or drop the record"
    )


def _fill(writer: _Writer, draft: Draft, dialog: Dialog, image_root: Path) -> Row:
    row = empty_row(writer.options.spec)
    length = len(draft.tokens)
    row["tokens"][:length] = draft.tokens
    row["labels"][:length] = draft.labels
    row["visual_index"][:length] = draft.visual
    row["positions"][:length] = np.arange(length)
    row["segment_ids"][:length] = 1
    if dialog.image is None or writer.square is None:
        return row
    size = writer.options.spec.image_size
    row["images"][0] = to_square(load_image(dialog.image, image_root), size)
    row["image_valid"][0] = True
    row["pixel_box"][0] = writer.square.pixel_box(size)
    _fill_prompts(row, writer, draft)
    _fill_references(row, writer, draft)
    return row


def _fill_prompts(row: Row, writer: _Writer, draft: Draft) -> None:
    assert writer.square is not None
    width, height = writer.square.width, writer.square.height
    for slot, prompt in enumerate(draft.prompts):
        region, size = writer.regions[prompt.region], writer.options.spec.image_size
        row["prompt_masks"][slot] = prompt_mask(region, prompt.kind, width, height, size)
        row["prompt_valid"][slot] = True


def _fill_references(row: Row, writer: _Writer, draft: Draft) -> None:
    assert writer.square is not None
    places = np.flatnonzero(row["tokens"] == writer.tokenizer.id_of(REF))
    assert len(places) == len(draft.refs), "every <REF> id has a reference and the reverse"
    mask_slot = 0
    for k, (place, ref) in enumerate(zip(places, draft.refs, strict=True)):
        region = writer.regions[ref.region]
        row["ref_pos"][k], row["ref_unit"][k], row["ref_group"][k] = place, ref.unit, ref.group
        row["ref_valid"][k] = True
        if ref.unit is Unit.BOX and region.box is not None:
            row["boxes"][k] = writer.square.boxes_to_model(np.asarray(region.box))
        elif writer.has_mask(ref):
            assert region.mask is not None
            size = (writer.square.width, writer.square.height, writer.options.spec.mask_size)
            row["masks"][mask_slot] = target_mask(region.mask, *size)
            row["mask_slot"][k] = mask_slot
            mask_slot += 1
