"""One turn of a dialogue as token ids: prompt with expanded slots, answer with its references."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from data_pipelines import templates
from data_pipelines.coords import span_coords, write_prompts
from data_pipelines.options import EncodeError, EncodeOptions
from data_pipelines.records import Dialog, PromptKind, Region, Turn
from data_pipelines.tokenizer import Tokenizer
from refvlm_jax.batch import TEXT
from refvlm_jax.trp.commands import find_command
from refvlm_jax.trp.coords import render_answer_coords
from refvlm_jax.trp.prompt import (
    ASSISTANT,
    TURN_SEPARATOR,
    USER,
    clean_question,
    shared_opening,
    split_slots,
    turn_prompt,
)
from refvlm_jax.trp.render import render_answer
from refvlm_jax.trp.spans import TextSpan
from refvlm_jax.trp.tokens import IGNORE_ID, IMAGE_SLOT, PROMPT_SLOT, REF, Unit


@dataclass(frozen=True)
class Reference:
    """One `<REF>` and what it must decode to."""

    offset: int
    """Index of the token in its answer; in a row, its position."""
    region: Region
    unit: Unit
    group: int
    """Phrase group, counted from 0 in its answer; in a row, from 0 in the row."""

    @property
    def wants_slot(self) -> bool:
        """Whether it needs one of the row's target slots of its unit."""
        if self.unit is Unit.MASK:
            return not self.region.no_mask_loss
        return self.unit in (Unit.KEYPOINT, Unit.DEPTH)


@dataclass(frozen=True)
class EncodedPrompt:
    """A turn up to and including "ASSISTANT:", never supervised."""

    tokens: list[int] = field(default_factory=list)
    visual: list[int] = field(default_factory=list)
    """`Batch.visual_index` of every position."""
    regions: list[tuple[Region, PromptKind]] = field(default_factory=list)
    """The region prompts in order."""

    def add_text(self, ids: Sequence[int]) -> None:
        """Appends text tokens."""
        self.tokens.extend(ids)
        self.visual.extend([TEXT] * len(ids))

    def add_visual(self, first: int, count: int) -> None:
        """Appends `count` visual tokens, from index `first` of the row's visual tokens on."""
        self.tokens.extend([0] * count)
        self.visual.extend(range(first, first + count))


@dataclass(frozen=True)
class EncodedAnswer:
    """An answer and its end token."""

    tokens: list[int]
    refs: list[Reference]
    complete: bool = True
    """False when the text was cut: its end token then stands where no answer ends."""

    @property
    def labels(self) -> list[int]:
        """The tokens, with IGNORE_ID for the end token of a cut text."""
        return self.tokens if self.complete else [*self.tokens[:-1], IGNORE_ID]

    @property
    def slots(self) -> Counter[Unit]:
        """Target slots it needs of each unit."""
        return Counter(ref.unit for ref in self.refs if ref.wants_slot)


@dataclass(frozen=True)
class TurnEncoder:
    """Renders and tokenises turns.

    Args:
      tokenizer: text to ids.
      options: how to render.
      rng: chooses question templates; None takes the first one.
    """

    tokenizer: Tokenizer
    options: EncodeOptions
    rng: np.random.Generator | None

    def prompt(
        self, dialog: Dialog, turn: Turn, *, first: bool, prompts_before: int = 0
    ) -> EncodedPrompt:
        """The question side of a turn.

        Args:
          dialog: what the turn is part of.
          turn: the turn.
          first: it opens its dialogue: with preamble and picture, or after the shared `opening`.
          prompts_before: region prompts of the row before this turn.
        """
        tokenizer, result = self.tokenizer, EncodedPrompt()
        shared = first and self.options.shared_picture
        if not first:
            result.add_text(tokenizer.encode(TURN_SEPARATOR))
        if not shared:
            result.add_text([tokenizer.bos_id])
        shown = iter(turn.prompts)
        for piece in split_slots(self._prompt_text(dialog, turn, first and not shared)):
            if piece == IMAGE_SLOT:
                result.add_visual(0, self.options.spec.image_tokens)
            elif piece == PROMPT_SLOT:
                prompt = next(shown)
                result.add_visual(*self._slot(prompts_before + len(result.regions)))
                result.regions.append((dialog.regions[prompt.region], prompt.kind))
            else:
                result.add_text(tokenizer.encode(piece))
        return result

    def opening(self, image: bool) -> EncodedPrompt:
        """Begin token, preamble and picture, for dialogues that share them."""
        result = EncodedPrompt()
        result.add_text([self.tokenizer.bos_id])
        preamble = self.options.register == "ref"
        for piece in split_slots(shared_opening(preamble=preamble, image=image)):
            if piece == IMAGE_SLOT:
                result.add_visual(0, self.options.spec.image_tokens)
            else:
                result.add_text(self.tokenizer.encode(piece))
        return result

    def _slot(self, prompt: int) -> tuple[int, int]:
        """First index and number of the visual tokens of a region prompt."""
        spec = self.options.spec
        return spec.images * spec.image_tokens + prompt * spec.prompt_tokens, spec.prompt_tokens

    def _template(self, bank: str) -> int | None:
        """The template that the options fix; None where one is drawn."""
        options = self.options
        if not options.longest_template or options.fixed_template:
            return None
        return templates.longest(bank, options.register, options.templates)

    def _prompt_text(self, dialog: Dialog, turn: Turn, first: bool) -> str:
        question = turn.literal or templates.render(
            turn.bank,
            turn.slots,
            register=self.options.register,
            rng=None if self.options.fixed_template else self.rng,
            index=self._template(turn.bank),
            regions=len(turn.prompts),
            limit=self.options.templates,
        )
        if question.count(PROMPT_SLOT) != len(turn.prompts):
            raise EncodeError(
                f"{dialog.uid}: question {question!r} has {question.count(PROMPT_SLOT)} region "
                f"slots for {len(turn.prompts)} prompts; correct the record or its template"
            )
        picture = first and dialog.image is not None
        if self.options.register == "coord":
            question = clean_question(write_prompts(question, dialog, turn))
            slot = f"{IMAGE_SLOT}\n" if picture else ""
            return f"{USER}{slot}{question}{ASSISTANT}"
        units = _units(turn)
        return turn_prompt(turn.task_name, question, first=first, units=units, image=picture)

    def answer(self, dialog: Dialog, turn: Turn) -> EncodedAnswer:
        """The answer side of a turn; raises EncodeError when ids and references do not agree."""
        spans = [TextSpan(s.start, s.end, s.unit, len(s.targets)) for s in turn.spans]
        if self.options.register == "coord":
            boxes = [span_coords(dialog, span) for span in turn.spans]
            text = render_answer_coords(turn.answer, spans, boxes)
            return EncodedAnswer([*self.tokenizer.encode(text), self.tokenizer.eos_id], [])
        rendered = render_answer(turn.answer, spans, plan=self.options.plan)
        ids = [*self.tokenizer.encode(rendered.text), self.tokenizer.eos_id]
        ref_id = self.tokenizer.id_of(REF)
        offsets = [k for k, token in enumerate(ids) if token == ref_id]
        targets = [
            (dialog.regions[region], turn.spans[index].unit, group)
            for group, index in enumerate(rendered.order)
            for region in turn.spans[index].targets
        ]
        if len(offsets) != len(targets):
            raise EncodeError(
                f"{dialog.uid}: {len(offsets)} {REF} ids for {len(targets)} targets; "
                "the tokenizer must keep special tokens whole"
            )
        refs = [Reference(k, *target) for k, target in zip(offsets, targets, strict=True)]
        return EncodedAnswer(ids, refs)


def cut_positions(turn: Turn) -> list[int]:
    """Offsets where an answer may end without splitting a group, ascending, the full one excluded.

    Before a group, or after one that no other encloses.
    """
    ends = {
        span.end
        for span in turn.spans
        if not any(o.start <= span.start and o.end > span.end for o in turn.spans)
    }
    starts = {span.start for span in turn.spans}
    inside = {k for k in ends | starts if any(s.start < k < s.end for s in turn.spans)}
    return sorted((ends | starts) - inside - {len(turn.answer)})


def cut_turn(turn: Turn, position: int) -> Turn:
    """The turn with its answer cut at one of `cut_positions`, groups behind it dropped."""
    spans = [span for span in turn.spans if span.end <= position]
    return replace(turn, answer=turn.answer[:position], spans=spans)


def _units(turn: Turn) -> list[Unit] | None:
    """Units for the command: its own, unless the answer holds another."""
    own = find_command(turn.task_name).unit
    used = list(dict.fromkeys(span.unit for span in turn.spans))
    if all(unit is own for unit in used):
        return None
    return sorted(used, key=lambda unit: unit is not own)
