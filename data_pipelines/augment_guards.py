"""What may be changed about a picture without making wrong what dialogues say about it.

Words decide, and they are looked for rather too widely: a change that is left out costs nothing, one
that turns an answer wrong teaches it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_pipelines.records import Dialog
from refvlm_jax.trp.commands import COMMANDS
from refvlm_jax.trp.tokens import Unit

# Also inside words: leftmost, right-hand, topleft, bottomright. The short forms are RefCOCO's.
_SIDES = re.compile(
    r"left(?!over)|(?<![bf])right|\b(?:lft|lf|lt|rgt|rght|rt|l|r)\b|clockwise|o'?\s?clock"
    r"|\b(?:east|west)\w*|starboard|\bport\b|mirror|driver'?s? side|passenger'?s? side",
    re.IGNORECASE,
)
# Writing is no longer readable in a mirror, nor is a dial.
_WRITING = re.compile(
    r"\b(?:says?|reads?|reading|writ\w*|text|words?|letters?|letter\w*|numbers?|digits?|numerals?|logos?"
    r"|brands?|signs?|plates?|labels?|titles?|captions?|clocks?|watch\w*|time|spell\w*|names?|jerseys?"
    r"|posters?|scoreboards?|maps?)\b|[\"\u201c\u201d]",
    re.IGNORECASE,
)
# Where in the picture, or the how-manieth of it.
_PLACE = re.compile(
    r"\b(?:top\w*|bottom\w*|upper\w*|lower\w*|middle|mid|cent(?:er|re)\w*|corners?|edges?|borders?|sides?"
    r"|cut ?off|cropped|partial\w*|half|first|second|third|fourth|fifth|last|\d+(?:st|nd|rd|th)"
    r"|background|foreground|near\w*|clos\w*|far\w*|behind|front|back|big\w*|small\w*|large\w*|tall\w*"
    r"|most|least|\w+est|only|all|every\w*|other|another|picture|image|photo\w*)\b",
    re.IGNORECASE,
)
_COORDINATES = re.compile(r"[\[(<]\s*-?\d*\.?\d+\s*[,;]\s*-?\d")
_COLOUR = re.compile(
    r"colou?r\w*|\b(?:hues?|red\w*|orange|yellow\w*|green\w*|blue\w*|purple|violet|pink\w*|brown\w*|beige"
    r"|tan|cyan|teal|turquoise|magenta|maroon|navy|olive|gold\w*|silver\w*|bronze|blond\w*|brunette"
    r"|ripe|cream|crimson|scarlet|lavender|lime|ginger|auburn|peach|khaki|burgundy|indigo|rainbow)\b",
    re.IGNORECASE,
)
_LIGHT = re.compile(
    r"\b(?:black\w*|white\w*|gr[ae]y\w*|dark\w*|light\w*|bright\w*|pale|dim\w*|shad\w*|sun\w*|night\w*"
    r"|day\w*|evening|morning|dusk|dawn|glow\w*|shin\w*|transparent|faded|monochrome)\b",
    re.IGNORECASE,
)

# Banks with a question that asks for an order from left to right.
_ORDERED = ("image_detail",)


@dataclass(frozen=True)
class Allowed:
    """Changes that leave everything true."""

    flip: bool
    crop: bool
    pad: bool
    hue: bool
    """Hue and saturation."""
    light: bool
    """Brightness and contrast."""


def allowed(dialogs: Sequence[Dialog]) -> Allowed:
    """What dialogues about one picture allow, judged by all of their turns together."""
    text = "\n".join(part for dialog in dialogs for part in _words(dialog))
    sides, coordinates = bool(_SIDES.search(text)), bool(_COORDINATES.search(text))
    dense = [depth for dialog in dialogs for depth in _depths(dialog)]
    # A zoom makes the same metres look nearer or farther.
    zoom = not coordinates and not any(depth.kind == "metric" for depth in dense)
    # Cutting off is harmless only where answers name nothing but what they point at.
    pointed = all(_is_pointed(dialog) for dialog in dialogs)
    light = not _LIGHT.search(text)
    return Allowed(
        flip=not sides and not coordinates and not _WRITING.search(text),
        crop=zoom and pointed and not sides and not _PLACE.search(text),
        pad=zoom and all(0 <= depth.invalid <= 65535 for depth in dense),
        hue=light and not _COLOUR.search(text),
        light=light,
    )


def _words(dialog: Dialog) -> Iterator[str]:
    for turn in dialog.turns:
        if turn.bank in _ORDERED:
            yield "left to right"
        yield from (turn.literal, turn.answer, *turn.slots.values(), *turn.references)
    for region in dialog.regions:
        yield region.category


def _depths(dialog: Dialog) -> Iterator:
    return (region.depth for region in dialog.regions if region.depth is not None)


def _is_pointed(dialog: Dialog) -> bool:
    return all(
        turn.spans
        and turn.task_name in COMMANDS
        and COMMANDS[turn.task_name].unit is not Unit.NONE
        and not turn.task_name.startswith("gcg")
        for turn in dialog.turns
    )
