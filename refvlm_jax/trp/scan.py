"""Splits a growing text into runs of text and reserved strings, however it is cut into pieces."""

import re

from refvlm_jax.trp.spans import CONTROL_TEXT
from refvlm_jax.trp.tokens import RESERVED

TAGS = frozenset((*RESERVED, *CONTROL_TEXT))
_TAG = re.compile("|".join(re.escape(tag) for tag in sorted(TAGS)))
_PREFIXES = frozenset(tag[:length] for tag in TAGS for length in range(1, len(tag)))
_LONGEST = max(map(len, _PREFIXES))


class TagScanner:
    """Finds reserved strings in a stream; what may be the start of one is held back."""

    def __init__(self):
        self._rest = ""

    def feed(self, piece: str) -> list[str]:
        """Text runs and complete reserved strings (members of `TAGS`) that `piece` settles."""
        text = self._rest + piece
        found, done = [], 0
        for match in _TAG.finditer(text):
            found += [text[done : match.start()], match.group()]
            done = match.end()
        keep = _unsettled(text, done)
        found.append(text[done : len(text) - keep])
        self._rest = text[len(text) - keep :]
        return [run for run in found if run]

    def close(self) -> str:
        """What is still held back: a cut reserved string, or text that looks like one."""
        rest, self._rest = self._rest, ""
        return rest


def _unsettled(text: str, done: int) -> int:
    """Length of the longest suffix after `done` that could grow into a reserved string."""
    for length in range(min(_LONGEST, len(text) - done), 0, -1):
        if text[-length:] in _PREFIXES:
            return length
    return 0
