"""Format compliance of a written answer, judged on its text alone."""

from dataclasses import dataclass

from refvlm_jax.trp.answer import ParsedAnswer
from refvlm_jax.trp.parse import parse_answer


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


def check_format(text: str) -> FormatReport:
    """Checks one answer; never raises."""
    return check_parsed(parse_answer(text))


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
