"""From generated tokens to answers: which references to decode, and with what confidence."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import jax.numpy as jnp
import numpy as np

from refvlm_jax.batch import NO_GROUP
from refvlm_jax.models.refvlm import RefTable
from refvlm_jax.trp.parse import ParsedAnswer, parse_answer
from refvlm_jax.trp.tokens import REF, Unit


class Tokenizer(Protocol):
    """What generation needs of a tokenizer."""

    eos_id: int
    pad_id: int

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens included."""
        ...

    def id_of(self, token: str) -> int:
        """Id of one token by its string."""
        ...


@dataclass(kw_only=True)
class Reference:
    """One `<REF>` of an answer."""

    group: int
    position: int
    """Index among the generated tokens."""
    unit: Unit
    phrase: str | None
    score_parts: dict[str, float] = field(default_factory=dict)


@dataclass(kw_only=True)
class TextAnswer:
    """One generated answer before its references are decoded."""

    text: str
    """Answer with tags, without the end token."""
    parsed: ParsedAnswer
    tokens: list[int]
    finished: bool
    references: list[Reference]


def read_answer(
    ids: Sequence[int],
    log_prob: Sequence[float],
    finished: bool,
    tokenizer: Tokenizer,
    commanded: Unit,
) -> TextAnswer:
    """Parses one generated id sequence.

    A reference is decoded by the unit its own group names; one whose group names none or an unknown
    one falls back to the unit the task command asked for.
    """
    tokens = list(ids)
    if tokenizer.eos_id in tokens:
        tokens = tokens[: tokens.index(tokenizer.eos_id)]
    text = tokenizer.decode(tokens)
    parsed = parse_answer(text)
    ref_id = tokenizer.id_of(REF)
    positions = [k for k, token in enumerate(tokens) if token == ref_id]
    return TextAnswer(
        text=text,
        parsed=parsed,
        tokens=tokens,
        finished=finished,
        references=_references(parsed, positions, np.asarray(log_prob), commanded),
    )


def _references(
    parsed: ParsedAnswer, positions: list[int], log_prob: np.ndarray, commanded: Unit
) -> list[Reference]:
    references = []
    for number, group in enumerate(parsed.groups):
        owned = positions[group.first_ref : group.first_ref + group.ref_count]
        before = positions[group.first_ref - 1] + 1 if group.first_ref else 0
        for position in owned:
            parts = {
                "phrase": _geometric_mean(log_prob[before : owned[0]]),
                "ref": float(np.exp(log_prob[position])),
            }
            unit = group.unit or commanded
            references.append(
                Reference(
                    group=number,
                    position=position,
                    unit=unit,
                    phrase=group.phrase,
                    score_parts=parts,
                )
            )
    return references


def _geometric_mean(log_prob: np.ndarray) -> float:
    return float(np.exp(log_prob.mean())) if len(log_prob) else 1.0


def reference_table(answers: Sequence[TextAnswer], slots: int) -> RefTable:
    """Fixed-size table of the references of several answers; those beyond `slots` are left out."""
    shape = (len(answers), slots)
    pos, unit = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    image, valid = np.zeros(shape, np.int32), np.zeros(shape, np.bool_)
    group = np.full(shape, NO_GROUP, np.int32)
    for row, answer in enumerate(answers):
        for slot, reference in enumerate(answer.references[:slots]):
            pos[row, slot], unit[row, slot] = reference.position, reference.unit
            valid[row, slot], group[row, slot] = True, reference.group
    arrays = {"pos": pos, "unit": unit, "image": image, "valid": valid, "group": group}
    return RefTable(**{name: jnp.asarray(values) for name, values in arrays.items()})
