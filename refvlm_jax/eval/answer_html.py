"""Questions and answers as HTML: phrases are coloured chips with the numbers of their objects."""

from collections.abc import Sequence
from html import escape

from refvlm_jax.eval.overlay import hue
from refvlm_jax.eval.record_types import Triplet
from refvlm_jax.trp.tokens import PROMPT_SLOT


def answer_html(plain: str, triplets: Sequence[Triplet]) -> str:
    """`plain` with a chip around every phrase; phrases may nest, crossing ones are left plain.

    Numbers count the objects of the answer from 1, as in its drawing.
    """
    events: list[tuple[int, int, int, str]] = []
    first = 1
    chosen: list[tuple[int, int]] = []
    for triplet in triplets:
        numbers = range(first, first + len(triplet.instances))
        first += len(triplet.instances)
        start, end = triplet.char_span
        if not 0 <= start < end <= len(plain) or any(_conflict((start, end), s) for s in chosen):
            continue
        chosen.append((start, end))
        events.append((start, 1, -end, f'<span class="chip" style="--h:{hue(triplet.phrase)}">'))
        events.append((end, 0, -start, "".join(map(_marker, numbers)) + "</span>"))
    pieces, done = [], 0
    for position, _, _, tag in sorted(events, key=lambda event: event[:3]):
        pieces += [escape(plain[done:position]), tag]
        done = position
    return "".join([*pieces, escape(plain[done:])])


def question_html(question: str) -> str:
    """The question with its region slots as numbered marks."""
    first, *rest = question.split(PROMPT_SLOT)
    marked = (f'<span class="region">region {k}</span>{escape(p)}' for k, p in enumerate(rest, 1))
    return escape(first) + "".join(marked)


def _marker(number: int) -> str:
    return f'<sup class="ref" data-ref="{number}">{number}</sup>'


def _conflict(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether two ranges are equal or cross."""
    return a == b or a[0] < b[0] < a[1] < b[1] or b[0] < a[0] < b[1] < a[1]
