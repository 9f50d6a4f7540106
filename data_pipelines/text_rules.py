"""Validation rules of a record's words: spans, templates, length (V11, V13, V16 to V18)."""

import functools
import re
from collections.abc import Sequence
from dataclasses import replace

from data_pipelines import templates
from data_pipelines.records import Dialog, Turn
from refvlm_jax.trp.prompt import turn_prompt
from refvlm_jax.trp.render import render_answer
from refvlm_jax.trp.spans import TextSpan, check_free_text, check_phrase
from refvlm_jax.trp.tokens import PROMPT_SLOT

TEXT_TOKENS = 1472
"""Tokens of a dialogue, picture and region prompts counted as one each."""
ROW_TOKENS = 2048
"""Tokens of a dialogue, picture and region prompts counted as what they expand to."""
_PICTURE, _PROMPT = 576, 10
# A tag is one token; a Llama-style vocabulary needs about one for every five Latin letters.
_PIECE = re.compile(r"</?\w+>|\[VPT\]|[A-Za-z]{1,5}|\S|\n")


def phrase_problem(turn: Turn) -> str | None:
    """A span whose text cannot be a phrase, in words (V11); ranges are another rule's matter."""
    for span in turn.spans:
        if 0 <= span.start < span.end <= len(turn.answer):
            phrase, where = turn.answer[span.start : span.end], f"span [{span.start}, {span.end})"
            try:
                check_free_text(phrase, where)
                check_phrase(phrase, where)
            except ValueError as error:
                return str(error)
    return None


def question_problem(turn: Turn) -> tuple[str, str] | None:
    """Code and message of a question that cannot be asked (V13, V17, V18)."""
    if turn.literal:
        slots = turn.literal.count(PROMPT_SLOT)
        if slots != len(turn.prompts):
            return "V13", f"{slots} region slots for {len(turn.prompts)} prompts"
        return None
    blank = sorted(name for name, value in turn.slots.items() if not value.strip())
    if "expr" in blank:
        return "V18", "the expression is empty"
    if blank:
        return "V17", f"slot {blank[0]!r} of template bank {turn.bank!r} is empty"
    problem = _template_problem(turn.bank, frozenset(turn.slots), len(turn.prompts))
    return ("V17", problem) if problem else None


@functools.cache
def _template_problem(bank: str, given: frozenset[str], prompts: int) -> str | None:
    """Why a template of a bank, of any register, cannot ask with these slots."""
    if bank not in _banks():
        return f"no template bank {bank!r}" if bank else "neither a question nor a template bank"
    for register in templates.REGISTERS:
        for sentence in templates.sentences(bank, register):
            wanted = templates.slots_of(sentence)
            if missing := sorted(set(wanted) - {"region", "regions"} - given):
                return f"template {sentence!r} needs a value for {missing[0]!r}"
            shown = wanted.count("region") + prompts * wanted.count("regions")
            if shown != prompts:
                return f"template {sentence!r} shows {shown} regions, the turn has {prompts}"
    return None


@functools.cache
def _banks() -> frozenset[str]:
    return frozenset(templates.banks())


def is_trained(dialog: Dialog) -> bool:
    """Whether a dialogue is there to learn from; others are asked, and none may be left out."""
    return dialog.split.startswith("train") and "eval_only" not in dialog.flags


def too_long(turns: Sequence[Turn], picture: bool) -> str | None:
    """Why turns do not fit into the length budget of a row, by estimate (V16)."""
    text = sum(_turn_tokens(turn, first=k == 0) for k, turn in enumerate(turns)) + picture
    prompts = sum(len(turn.prompts) for turn in turns)
    row = text + picture * (_PICTURE - 1) + prompts * (_PROMPT - 1)
    if text > TEXT_TOKENS:
        return f"about {text} tokens, a dialogue has at most {TEXT_TOKENS}"
    return f"about {row} positions, a row has {ROW_TOKENS}" if row > ROW_TOKENS else None


def split_turns(dialog: Dialog) -> list[Dialog]:
    """The dialogue, or several with as many turns each as fit; a turn is never cut.

    The first keeps the uid; later ones get "+2", "+3" behind it. What is only evaluated is not split.
    """
    if len(dialog.turns) < 2 or not is_trained(dialog):
        return [dialog]
    picture = dialog.image is not None
    pieces: list[list[Turn]] = [[]]
    for turn in dialog.turns:
        if pieces[-1] and too_long([*pieces[-1], turn], picture):
            pieces.append([])
        pieces[-1].append(turn)
    if len(pieces) == 1:
        return [dialog]
    return [
        replace(dialog, turns=turns, uid=dialog.uid if number == 1 else f"{dialog.uid}+{number}")
        for number, turns in enumerate(pieces, 1)
    ]


def _turn_tokens(turn: Turn, *, first: bool) -> int:
    """Tokens of a turn by estimate, without its picture; damaged ones are other rules' matter."""
    spans = [TextSpan(s.start, s.end, s.unit, len(s.targets)) for s in turn.spans]
    try:
        question = turn.literal or templates.render(
            turn.bank, turn.slots, index=0, regions=len(turn.prompts)
        )
        asked = turn_prompt(turn.task_name, question, first=first, image=False)
        return (
            3
            + len(_PIECE.findall(asked))
            + len(_PIECE.findall(render_answer(turn.answer, spans).text))
        )
    except ValueError:
        return 0
