"""Format compliance of a written answer, judged on its text alone."""

import re
from dataclasses import dataclass, replace
from typing import Literal

from refvlm_jax.trp.answer import ParsedAnswer
from refvlm_jax.trp.coords import parse_coords
from refvlm_jax.trp.parse import parse_answer
from refvlm_jax.trp.tokens import SPECIAL_TOKENS

AnswerStyle = Literal["plan", "direct", "coord"]
"""How an answer refers: planning block and `<REF>`, `<REF>` alone, or coordinates in the text."""
_NUMERIC_BRACKET = re.compile(r"\[[\s\d.,;]*\d[\s\d.,;]*\]?")


@dataclass(frozen=True)
class FormatReport:
    """Which rules of the grammar an answer keeps."""

    cot_present: bool
    """The planning block is there."""
    cot_flag_ok: bool
    """The block announces units if and only if the body has references."""
    parse_ok: bool
    """The parser had nothing to warn about."""
    self_consistent: bool
    """Plan lines and groups agree in name, unit, count and order."""
    ref_index_ok: bool
    """Indices start at 0 in every group and rise by one."""

    @property
    def valid(self) -> bool:
        """All of the above."""
        return all(
            (
                self.cot_present,
                self.cot_flag_ok,
                self.parse_ok,
                self.self_consistent,
                self.ref_index_ok,
            )
        )


def check_format(text: str, style: AnswerStyle = "plan") -> FormatReport:
    """Checks one answer; never raises. Rules that a style does not know count as kept.

    A `direct` answer must not open with a planning block; a `coord` answer holds no tags, and every
    bracket of numbers in it must be well-formed.
    """
    if style == "coord":
        return _check_coords(text)
    answer = parse_answer(text)
    report = check_parsed(answer)
    if style == "plan":
        return report
    return replace(report, cot_present=True, cot_flag_ok=answer.plan is None, self_consistent=True)


def _check_coords(text: str) -> FormatReport:
    plain = not any(token in text for token in SPECIAL_TOKENS)
    well_formed = len(parse_coords(text)) == len(_NUMERIC_BRACKET.findall(text))
    return FormatReport(
        cot_present=True,
        cot_flag_ok=True,
        parse_ok=plain and well_formed,
        self_consistent=True,
        ref_index_ok=True,
    )


def check_parsed(answer: ParsedAnswer) -> FormatReport:
    """Checks an answer that is parsed already."""
    planned = [(line.name, line.unit_text, line.num) for line in answer.plan or []]
    written = [(group.phrase, group.unit_text, group.ref_count) for group in answer.groups]
    return FormatReport(
        cot_present=answer.plan is not None,
        cot_flag_ok=answer.has_plan is not None and answer.has_plan == (answer.ref_count > 0),
        parse_ok=not answer.warnings,
        self_consistent=planned == written,
        ref_index_ok=all(g.indices == list(range(g.ref_count)) for g in answer.groups),
    )
