"""Short answers of visual question answering: extraction, normalisation, agreement with people."""

import re
from collections.abc import Sequence

_LEAD = re.compile(r".*\bthe answer is\b:?", re.IGNORECASE | re.DOTALL)
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_DIGITS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_ARTICLES = frozenset(("a", "an", "the"))


def _contractions() -> dict[str, str]:
    """Contractions without apostrophe -> with it; words in their own right (well) are left out."""
    negated = "are could did does do had has have is might must need should was would ca wo ai"
    pairs = {f"{verb}nt": f"{verb}n't" for verb in negated.split()}
    for stem, endings in {
        "i": "m ve",
        "you": "d ll re ve",
        "he": "s",
        "she": "s",
        "it": "d ll",
        "we": "ve",
        "they": "d ll re ve",
        "that": "d ll s",
        "there": "d s",
        "what": "d ll re s",
        "where": "d s",
        "who": "d ll s",
        "how": "d ll s",
        "could": "ve",
        "would": "ve",
        "should": "ve",
        "might": "ve",
        "must": "ve",
        "somebody": "s",
        "someone": "s",
        "something": "s",
        "let": "s",
    }.items():
        pairs |= {stem + end: f"{stem}'{end}" for end in endings.split()}
    return pairs | {"oclock": "o'clock", "maam": "ma'am", "yall": "y'all"}


_CONTRACTIONS = _contractions()


def extract(text: str) -> str:
    """The answer in a sentence: what follows the last "the answer is", without the final stop.

    Decimals and abbreviations keep their points: `The answer is 3.5 metres.` gives `3.5 metres`.
    """
    answer = _LEAD.sub("", text.replace("</s>", ""), count=1).strip()
    return answer.rstrip(".!?").rstrip() if answer.strip(".!?") else answer


def normalise(answer: str) -> str:
    """The official normal form: lower case, no punctuation or articles, digits for number words."""
    text = " ".join(answer.lower().split())
    text = _PERIOD.sub("", _drop_marks(text))
    words = (_DIGITS.get(word, word) for word in text.split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _drop_marks(text: str) -> str:
    """Removes a mark that stands at a blank, and blanks one that joins two words (red/blue)."""
    joined = _DIGIT_COMMA.search(text) is not None  # 1,000: then every mark is removed
    result = text
    for mark in _MARKS:
        at_blank = f"{mark} " in text or f" {mark}" in text or text[:1] == mark or text[-1:] == mark
        result = result.replace(mark, "" if at_blank or joined else " ")
    return result


def soft_accuracy(answer: str, people: Sequence[str]) -> float:
    """Agreement with ten people: min(matches among nine of them / 3, 1), over the ten ways.

    Both sides must be normalised. With fewer than ten answers the protocol is not defined; then a
    match with any of them counts as correct.
    """
    matches = sum(answer == other for other in people)
    if len(people) < 10:
        return float(matches > 0)
    agreed = matches * min((matches - 1) / 3.0, 1.0)
    others = (len(people) - matches) * min(matches / 3.0, 1.0)
    return (agreed + others) / len(people)
