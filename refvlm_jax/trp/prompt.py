"""Question side of a turn: preamble, task command and user text, and its slots."""

import re
from collections.abc import Sequence

from refvlm_jax.trp.commands import (
    COMMAND_ELEMENTS,
    COMMAND_HEAD,
    COMMAND_UNIT,
    COMMANDS,
    command_text,
)
from refvlm_jax.trp.render import PLAN_FALSE, PLAN_NAME, PLAN_NUM, PLAN_TRUE
from refvlm_jax.trp.spans import PLAN_UNIT, check_free_text
from refvlm_jax.trp.tokens import IMAGE_SLOT, PROMPT_SLOT, SPECIAL_TOKENS, Unit

PREAMBLE = (
    "Follow the task command to answer about the picture. Answers use:\n"
    "- Sentence: full prose.\n"
    "- Phrase: a short name in <Phrase></Phrase>.\n"
    "- Unit: a type in <Unit></Unit> with numbered targets.\n\n"
)
"""Stands before the first command of a dialogue, once."""
USER, ASSISTANT = "USER: ", " ASSISTANT:"
TURN_SEPARATOR = "\n"
"""Follows the end token of every answer; never supervised."""

_SLOTS = re.compile(f"({re.escape(IMAGE_SLOT)}|{re.escape(PROMPT_SLOT)})")
# The blank before a punctuation mark is an artefact only where an image marker stood between them.
_IMAGE_BEFORE_MARK = re.compile(rf"\s*{re.escape(IMAGE_SLOT)}\s*(?=[?.,!;:])")


def turn_prompt(
    task_name: str,
    question: str,
    *,
    first: bool,
    units: Sequence[Unit] | None = None,
    image: bool = False,
) -> str:
    """The text of a turn up to and including "ASSISTANT:".

    Args:
      task_name: a key of `commands.COMMANDS`.
      question: free text with one `[VPT]` a region prompt. Image markers in it are dropped: the
        picture always stands at the front, put there by `image`.
      first: whether the turn opens the dialogue and carries the preamble.
      units: see `commands.command_text`.
      image: whether the picture is shown in this turn.

    Raises:
      ValueError: unknown task, bad units, or a blank question or one with a reserved string.
    """
    head = (PREAMBLE if first else "") + command_text(task_name, units)
    picture = f"{IMAGE_SLOT}\n" if image else ""
    return f"{head}{USER}{picture}{clean_question(question)}{ASSISTANT}"


def shared_opening(*, preamble: bool = True, image: bool = True) -> str:
    """What the dialogues of a row share when the picture does not belong to one question."""
    return (PREAMBLE if preamble else "") + (f"{IMAGE_SLOT}\n" if image else "")


def clean_question(question: str) -> str:
    """The question without image markers and superfluous whitespace; line breaks are kept."""
    text = _IMAGE_BEFORE_MARK.sub("", question).replace(IMAGE_SLOT, " ")
    text = re.sub(r"[^\S\n]+", " ", text)
    text = re.sub(r" ?\n ?", "\n", text).strip()
    if not text:
        raise ValueError(f"question {question!r} is blank; a turn needs some text or a prompt slot")
    check_free_text(text.replace(PROMPT_SLOT, ""), "question")
    return text


def split_slots(text: str) -> list[str]:
    """Text pieces and the literal markers IMAGE_SLOT and PROMPT_SLOT in order, no empty piece."""
    return [piece for piece in _SLOTS.split(text) if piece]


def _preamble_pieces() -> tuple[str, ...]:
    special = "|".join(map(re.escape, SPECIAL_TOKENS))
    return tuple(piece for piece in re.split(special, PREAMBLE) if piece)


def _element_pieces() -> tuple[str, ...]:
    lists = dict.fromkeys(", ".join(command.elements) for command in COMMANDS.values())
    with_unit = tuple(f"{elements}, unit{COMMAND_UNIT}" for elements in lists)
    return with_unit + tuple(f"{elements}{COMMAND_UNIT}None\n{USER}" for elements in lists)


WIRE_WORDS: tuple[str, ...] = tuple(unit.text for unit in Unit if unit is not Unit.NONE)
"""Pieces that are words: a tokenizer must match them as whole words ("box", not in "boxes")."""

WIRE_PHRASES: tuple[str, ...] = (
    *_preamble_pieces(),
    *(f"{COMMAND_HEAD}{name}{COMMAND_ELEMENTS}" for name in COMMANDS),
    *_element_pieces(),
    f"\n\n{USER}",
    ASSISTANT,
    f"\n{PLAN_TRUE}{PLAN_NAME}",
    f"\n{PLAN_FALSE}",
    f"\n{PLAN_NAME}",
    *(f"{PLAN_UNIT}{word}{PLAN_NUM}" for word in WIRE_WORDS),
    *(f"[{k}]" for k in range(10)),
    *WIRE_WORDS,
)
"""Frequent wire-format strings that a small tokenizer adds as whole tokens, one each.

A rendered prompt or answer is a concatenation of these, special tokens, single punctuation marks,
line ends, counts and free text, when the leftmost longest piece is taken first. No piece contains a
special token, and all but `WIRE_WORDS` end in a non-word character, so none cuts into a free word.
"""
