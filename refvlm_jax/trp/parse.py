"""The text of a written answer -> plan, plain text and groups of references. Never raises."""

from refvlm_jax.trp.answer import ParsedAnswer, ParsedGroup, PlanLine
from refvlm_jax.trp.stream import StreamParser

__all__ = ["ParsedAnswer", "ParsedGroup", "PlanLine", "parse_answer"]


def parse_answer(text: str) -> ParsedAnswer:
    """Takes a complete or cut answer apart; departures from the grammar become warnings.

    The inverse of `render.render_answer`: a rendered answer gives back the plain text and, for
    every span, one group with the same range, unit and number of references, in closing order.
    """
    parser = StreamParser()
    parser.feed(text)
    parser.close()
    return parser.answer
