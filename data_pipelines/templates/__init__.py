"""Question templates: one bank a task, two registers, our own wording.

The `ref` register asks for references, the `coord` register for coordinates written as text. Slots are
`{expr}`, `{question}`, `{region}` and `{regions}`; the last two become one region marker, or one for
every region that is shown.
"""

import difflib
import functools
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from refvlm_jax.trp.tokens import PROMPT_SLOT

_FOLDER = Path(__file__).parent
_SLOT = re.compile(r"\{(\w+)\}")
REGISTERS = ("ref", "coord")


def banks() -> list[str]:
    """Names of all banks."""
    return sorted(path.stem for path in _FOLDER.glob("*.txt") if "." not in path.stem)


@functools.cache
def sentences(bank: str, register: str = "ref") -> tuple[str, ...]:
    """The templates of a bank; a bank without its own `coord` sentences uses `ref` for both.

    Raises:
      ValueError: unknown bank or register.
    """
    if register not in REGISTERS:
        raise ValueError(f"template register {register!r}: expected one of {REGISTERS}")
    if bank not in banks():
        close = difflib.get_close_matches(bank, banks(), 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"no template bank {bank!r}{hint}")
    own = _FOLDER / f"{bank}.coord.txt"
    path = own if register == "coord" and own.is_file() else _FOLDER / f"{bank}.txt"
    return tuple(line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def slots_of(sentence: str) -> list[str]:
    """Names of the slots of a template, in order."""
    return _SLOT.findall(sentence)


@functools.cache
def longest(bank: str, register: str = "ref", limit: int = 0) -> int:
    """Index of the longest template, slots aside, among the first `limit` (0: all) of a bank."""
    choices = sentences(bank, register)[: limit or None]
    return max(range(len(choices)), key=lambda k: len(_SLOT.sub("", choices[k])))


def version() -> str:
    """Hex digest that changes with any template of any bank."""
    texts = [
        f"{bank} {register} {sentences(bank, register)}"
        for bank in banks()
        for register in REGISTERS
    ]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def render(
    bank: str,
    slots: Mapping[str, str],
    *,
    register: str = "ref",
    rng: np.random.Generator | None = None,
    index: int | None = None,
    regions: int = 1,
    limit: int = 0,
) -> str:
    """A question: template `index`, one drawn by `rng`, or the first.

    Slot values are free text and never interpreted, braces included. `regions` are listed by
    `{regions}`; of the bank only the first `limit` templates are drawn from, 0 for all.

    Raises:
      ValueError: unknown bank, or a slot of the template without a value.
    """
    choices = sentences(bank, register)
    if index is None:
        many = min(limit or len(choices), len(choices))
        index = 0 if rng is None else int(rng.integers(many))
    listed = ", ".join([PROMPT_SLOT] * regions)
    values = {"region": PROMPT_SLOT, "regions": listed, **slots}

    def fill(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise ValueError(f"template bank {bank!r} needs a value for {{{match[1]}}}")
        return values[match[1]]

    return _SLOT.sub(fill, choices[index % len(choices)])
