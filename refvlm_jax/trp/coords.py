"""The coordinate register: boxes and points written as numbers in the text.

Coordinates are fractions of the padded square's side with three decimals; `x1,y1,x2,y2` for a box,
`x,y` for a point, several targets of one phrase between one pair of brackets, separated by `;`.
"""

import math
import re
from collections.abc import Sequence

from refvlm_jax.trp.render import insert_tags
from refvlm_jax.trp.spans import TextSpan, check_spans

_NUMBER = r"[0-9]+\.[0-9]+"
_PAIR = rf"{_NUMBER}\s*,\s*{_NUMBER}"
_ITEM = rf"{_PAIR}(?:\s*,\s*{_PAIR})?"
_COORDS = re.compile(rf"\[\s*{_ITEM}(?:\s*;\s*{_ITEM})*\s*\]")
_VALUE = re.compile(_NUMBER)


def format_boxes(boxes_xyxy_normalised: Sequence[Sequence[float]]) -> str:
    """`[0.300,0.300,0.400,0.400;...]` for boxes [n, 4] (or points [n, 2]) as fractions of the side.

    Values are clamped to [0, 1], since the grammar knows no sign.

    Raises:
      ValueError: no box, a box of other than 2 or 4 numbers, or a number that is not finite.
    """
    if not len(boxes_xyxy_normalised):
        raise ValueError("no boxes to write; a phrase needs at least one target")
    return "[" + ";".join(_format_item(item) for item in boxes_xyxy_normalised) + "]"


def _format_item(item: Sequence[float]) -> str:
    if len(item) not in (2, 4) or not all(math.isfinite(v) for v in item):
        raise ValueError(f"{list(item)}: expected x1,y1,x2,y2 or x,y, all finite")
    return ",".join(f"{min(max(float(v), 0.0), 1.0):.3f}" for v in item)


def render_answer_coords(
    answer: str, spans: Sequence[TextSpan], boxes_per_span: Sequence[Sequence[Sequence[float]]]
) -> str:
    """The answer with every phrase followed by its coordinates, without plan and tags.

    Args:
      answer: plain text.
      spans: the phrases.
      boxes_per_span: for every span, its `count` boxes or points as fractions of the side.

    Raises:
      ValueError: bad spans, or boxes that do not match them in number.
    """
    check_spans(answer, spans)
    have, want = [len(boxes) for boxes in boxes_per_span], [span.count for span in spans]
    if have != want:
        raise ValueError(f"boxes per span {have} do not match the spans' counts {want}")
    return insert_tags(answer, spans, "", lambda i: format_boxes(boxes_per_span[i]))


def parse_coords(text: str) -> list[list[tuple[float, ...]]]:
    """All coordinate brackets of a text: for each, its boxes (4 numbers) and points (2).

    Never raises: brackets that hold anything else are skipped, whitespace in them is tolerated.
    """
    brackets = (match.group() for match in _COORDS.finditer(text))
    return [
        [tuple(float(v) for v in _VALUE.findall(item)) for item in bracket.split(";")]
        for bracket in brackets
    ]
