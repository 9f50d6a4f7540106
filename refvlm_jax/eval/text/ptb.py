"""Caption tokens after the conventions of the Penn Treebank, as caption metrics expect them.

The reference tokenizer is a Java program. This one follows its rules for English captions: clitics
are split off, abbreviations and decimal numbers stay whole, markup is one token, brackets become
-lrb- and the like, and punctuation is dropped. Exotic text (URLs, fractions) may differ.
"""

import re

_TOKEN = re.compile(
    r"""
      <[^<>\s]+>                       # markup, such as a forgotten end token
    | (?:[^\W\d_]\.){2,}               # e.g. i.e. u.s.
    | \d+(?:[.,:/]\d+)+                # 3.5  1,000  12:30  1/2
    | \w+(?:[-/&]\w+)*(?:'\w+)*        # words, hyphenated ones, clitics still attached
    | '(?:s|m|d|re|ve|ll)\b            # a clitic after something that is no word
    | \S                               # anything else, one by one
    """,
    re.VERBOSE,
)
_CLITIC = re.compile(r"(.+?)(n't|'(?:s|m|d|re|ve|ll))")
_TITLES = frozenset(("mr", "mrs", "ms", "dr", "st", "jr", "sr", "vs", "etc", "inc", "corp", "ltd"))
_JOINED = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "lemme": ("lem", "me"),
    "gimme": ("gim", "me"),
}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
# Lower-cased bracket tokens survive in the reference metrics: its list names them in capitals.
_DROPPED = frozenset(".?!,:;-\"'`\u2018\u2019\u201c\u201d\u2013\u2014\u2026")


def tokenize(text: str) -> list[str]:
    """Lower-case tokens of one caption without punctuation."""
    text = text.lower().replace("\u2019", "'").replace("\u2018", "'")
    tokens: list[str] = []
    for match in _TOKEN.finditer(text):
        word = match.group()
        if word not in _DROPPED:
            tokens += _pieces(word, followed_by_dot=text.startswith(".", match.end()))
    return tokens


def _pieces(word: str, *, followed_by_dot: bool) -> tuple[str, ...]:
    if word in _BRACKETS:
        return (_BRACKETS[word],)
    if word in _JOINED:
        return _JOINED[word]
    if split := _CLITIC.fullmatch(word):
        return split[1], split[2]
    if word in _TITLES and followed_by_dot:
        return (f"{word}.",)
    return (word,)
