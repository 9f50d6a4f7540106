"""From dialogues to a row of the static batch (`refvlm_jax.batch.Batch` without the batch axis).

A row is one conversation about at most one picture: begin token, prompt, answer, end token, then a
separator before the next turn. Or, with `EncodeOptions.shared_picture`, several that share begin
token, preamble and picture, and see nothing of each other. Only answers and their end tokens are
supervised.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.augment import ChangedSquare, apply_change, draw_change
from data_pipelines.options import EncodeError, EncodeOptions
from data_pipelines.records import Dialog, MediaRef, Turn
from data_pipelines.rows import Draft, Row, fill
from data_pipelines.squares import SquareReader, Squares
from data_pipelines.tokenizer import Tokenizer
from data_pipelines.turns import (
    EncodedAnswer,
    EncodedPrompt,
    TurnEncoder,
    cut_positions,
    cut_turn,
)

__all__ = ["EncodeError", "EncodeOptions", "Row", "encode_prompt", "encode_row"]


def encode_row(
    dialogs: Sequence[Dialog],
    image_root: Path,
    tokenizer: Tokenizer,
    options: EncodeOptions,
    rng: np.random.Generator | None,
    *,
    squares: Squares | None = None,
    counts: Counter[str] | None = None,
) -> Row:
    """A training row: dialogues about one picture, as one conversation or side by side.

    Preamble and picture stand in the first turn, or before it. A turn that exceeds a size of the row is
    left out whole with those that follow it: the rest of the conversation, or of its own dialogue where
    dialogues stand side by side. A first turn that is too long alone is cut between its groups, its
    plan written again so that counts stay true; an answer without groups is cut inside its text,
    and its end token is then not supervised, since it does not end there.

    Args:
      dialogs: one or more.
      image_root: folder of the pictures.
      tokenizer: text to ids.
      options: rendering and sizes.
      rng: chooses question templates and what is changed about the picture (`options.augment`); None
        takes the first of each and changes nothing.
      squares: reads (and may keep) decoded pictures; None reads from `image_root`.
      counts: receives what was lost: `turns_dropped`, `answers_cut`, `refs_cut`,
        `masks_without_slot` (text is learned, pixels are not), `masks_vanished` (smaller than a
        cell of the mask grid), and the same of `keypoints` and `depth`.

    Raises:
      EncodeError: different pictures, a bad record, or a first question that does not fit.
      ImageError: the picture cannot be read.
    """
    counts = Counter() if counts is None else counts
    squares = squares or SquareReader(image_root, options.spec.image_size)
    image = _common_picture(dialogs)
    if image is not None and rng is not None and options.augment.active:
        change = draw_change(dialogs, image, options.augment, rng)
        squares = ChangedSquare(image_root, options.spec.image_size, image, change)
        dialogs, image = apply_change(dialogs, change, image_root), change.media(image)
    turns = (
        (number, place, dialog, turn)
        for number, dialog in enumerate(dialogs, 1)
        for place, turn in enumerate(dialog.turns)
    )
    side_by_side = options.shared_picture
    encoder, draft = TurnEncoder(tokenizer, options, rng), _opened(image, tokenizer, options)
    ended: set[int] = set()  # a turn needs those before it, but not the dialogues beside it
    for done, (number, place, dialog, turn) in enumerate(turns):
        own = number if side_by_side else 0
        if own in ended:
            counts["turns_dropped"] += 1
            continue
        first = place == 0 if side_by_side else done == 0
        prompt, answer = _encode_turn(encoder, draft, dialog, turn, first=first)
        if not draft.fits(prompt, answer):
            if done:
                counts["turns_dropped"] += 1
                ended.add(own)
                continue
            answer = _shortened(encoder, draft, prompt, dialog, turn, counts)
        draft.append(prompt, answer, supervise=turn.supervise, dialog=own)
    return fill(draft, image, squares, dialogs[0].uid, counts)


def encode_prompt(
    dialog: Dialog,
    turn_index: int,
    image_root: Path,
    tokenizer: Tokenizer,
    options: EncodeOptions,
    *,
    squares: SquareReader | None = None,
) -> Row:
    """The row that asks turn `turn_index`: earlier turns with their answers, then the question.

    Questions use the first template of their bank. Nothing is supervised or referred to.

    Raises:
      EncodeError: a bad record, or history and question do not fit.
      ImageError: the picture cannot be read.
    """
    encoder, draft = (
        TurnEncoder(tokenizer, options, None),
        _opened(dialog.image, tokenizer, options),
    )
    for number, turn in enumerate(dialog.turns[: turn_index + 1]):
        prompt, answer = _encode_turn(encoder, draft, dialog, turn, first=number == 0)
        answer = EncodedAnswer([] if number == turn_index else answer.tokens, [])
        if not draft.fits(prompt, answer):
            raise EncodeError(
                f"{dialog.uid}: the question of turn {turn_index} with its history exceeds "
                f"{draft.limits}; raise data.seq_len or data.prompts"
            )
        draft.append(prompt, answer, supervise=False)
    squares = squares or SquareReader(image_root, options.spec.image_size)
    return fill(draft, dialog.image, squares, dialog.uid, Counter())


def _opened(image: MediaRef | None, tokenizer: Tokenizer, options: EncodeOptions) -> Draft:
    """An empty row, or one with the opening that its dialogues share."""
    draft = Draft(options.spec)
    if options.shared_picture:
        draft.open(TurnEncoder(tokenizer, options, None).opening(image is not None))
    return draft


def _common_picture(dialogs: Sequence[Dialog]) -> MediaRef | None:
    if not dialogs or not dialogs[0].turns:
        raise EncodeError("a row needs at least one dialogue with a turn")
    image = dialogs[0].image
    for other in dialogs[1:]:
        if image is None or other.image is None or other.image.path != image.path:
            raise EncodeError(
                f"{dialogs[0].uid} and {other.uid} show different pictures and cannot share a row"
            )
    return image


def _encode_turn(
    encoder: TurnEncoder, draft: Draft, dialog: Dialog, turn: Turn, *, first: bool
) -> tuple[EncodedPrompt, EncodedAnswer]:
    try:
        prompt = encoder.prompt(dialog, turn, first=first, prompts_before=len(draft.prompts))
        return prompt, encoder.answer(dialog, turn)
    except EncodeError:
        raise
    except (ValueError, KeyError, IndexError) as error:
        raise EncodeError(f"{dialog.uid}: {error}; correct or drop the record") from error


def _shortened(
    encoder: TurnEncoder,
    draft: Draft,
    prompt: EncodedPrompt,
    dialog: Dialog,
    turn: Turn,
    counts: Counter[str],
) -> EncodedAnswer:
    """The longest part of a first answer that fits."""
    whole = encoder.answer(dialog, turn)
    if not turn.spans:
        room = draft.spec.seq_len - len(draft.tokens) - len(prompt.tokens) - 1
        if room > 0 and draft.fits(prompt, EncodedAnswer(whole.tokens[:1], [])):
            counts["answers_cut"] += 1
            return EncodedAnswer([*whole.tokens[:room], whole.tokens[-1]], [], complete=False)
    positions = cut_positions(turn)
    # Longer cuts need more of everything, so those that fit come first.
    fitting = bisect_right(
        positions,
        0,
        key=lambda at: int(not draft.fits(prompt, encoder.answer(dialog, cut_turn(turn, at)))),
    )
    if not fitting or not turn.answer[: positions[fitting - 1]].strip():
        raise EncodeError(
            f"{dialog.uid}: the first turn exceeds {draft.limits}; raise data.seq_len, "
            "data.prompts or data.refs, or drop the record"
        )
    answer = encoder.answer(dialog, cut_turn(turn, positions[fitting - 1]))
    counts["answers_cut"] += 1
    counts["refs_cut"] += len(whole.refs) - len(answer.refs)
    return answer
