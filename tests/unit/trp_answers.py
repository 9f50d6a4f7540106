"""Random answers with spans, shared by the grammar's tests."""

import random

from hypothesis import strategies as st

from refvlm_jax.trp.spans import TextSpan, check_spans
from refvlm_jax.trp.tokens import Unit

UNITS = [unit for unit in Unit if unit is not Unit.NONE]
PIECES = ["dog", " ", "(", ")", "[0]", "[", "]", "{}", "<", "</", "<Ph", "\n", ",", ".", "é", "猫"]
PIECES += ["🐕", "e\u0301", "Unit:", "Num: 3", "- Name: ", "\u2028", "\\d", "5", " the red", "[VP"]


def legal(answer: str, spans: list[TextSpan]) -> bool:
    """Whether the grammar accepts the answer."""
    try:
        check_spans(answer, spans)
    except ValueError:
        return False
    return True


def keep_legal(answer: str, candidates: list[TextSpan]) -> list[TextSpan]:
    """The candidates that fit, tried one after another; only the answer itself may be illegal."""
    spans: list[TextSpan] = []
    for candidate in candidates:
        if legal(answer, [*spans, candidate]):
            spans.append(candidate)
    return spans


def random_answer(rng: random.Random) -> tuple[str, list[TextSpan]]:
    """A legal answer made of awkward pieces, with nested and adjacent spans."""
    while True:
        answer = "".join(rng.choice(PIECES) for _ in range(rng.randint(0, 12)))
        if legal(answer, []):
            break
    candidates = []
    for _ in range(rng.randint(0, 5)):
        start, end = sorted((rng.randint(0, len(answer)), rng.randint(0, len(answer))))
        candidates.append(TextSpan(start, end, rng.choice(UNITS), rng.randint(1, 12)))
    return answer, keep_legal(answer, candidates)


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, list[TextSpan]]:
    """A legal answer of any text, with spans."""
    text = st.one_of(
        st.text(max_size=20), st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
    )
    answer = draw(text.filter(lambda answer: legal(answer, [])))
    offset = st.integers(0, len(answer))
    candidate = st.builds(TextSpan, offset, offset, st.sampled_from(UNITS), st.integers(1, 3))
    return answer, keep_legal(answer, draw(st.lists(candidate, max_size=5)))
