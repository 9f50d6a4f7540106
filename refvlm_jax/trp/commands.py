"""Task commands: the block before a question that says what kind of answer is wanted."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from refvlm_jax.trp.tokens import UNIT_CLOSE, UNIT_OPEN, Unit


@dataclass(frozen=True)
class Command:
    """One task: the elements its answers are made of (without "unit") and what they decode to."""

    name: str
    elements: tuple[str, ...]
    unit: Unit


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command("vqa", ("sentence",), Unit.NONE),
        Command("detection", ("phrase",), Unit.BOX),
        Command("segmentation", ("phrase",), Unit.MASK),
        Command("grounding_detection", ("phrase",), Unit.BOX),
        Command("grounding_segmentation", ("phrase",), Unit.MASK),
        Command("gcg_detection", ("phrase", "sentence"), Unit.BOX),
        Command("gcg_segmentation", ("phrase", "sentence"), Unit.MASK),
        Command("grounding_keypoints", ("phrase",), Unit.KEYPOINT),
        Command("keypoint_detection", ("phrase",), Unit.KEYPOINT),
        Command("depth", ("sentence", "phrase"), Unit.DEPTH),
    )
}

COMMAND_HEAD = "Task Command:\n- task name: "
COMMAND_ELEMENTS = "\n- answer element: "
COMMAND_UNIT = "\n- unit: "


def command_text(name: str, units: Sequence[Unit] | None = None) -> str:
    """The command block, line end included; a blank line follows it only when units are asked for.

    Args:
      name: a key of `COMMANDS`.
      units: what the answer must decode to; None for the command's own unit, empty for text only.

    Raises:
      ValueError: unknown task, or a repeated or empty unit.
    """
    command = find_command(name)
    wanted = _own_units(command) if units is None else tuple(units)
    if Unit.NONE in wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"command {name!r}: units {wanted} must be distinct and not NONE")
    elements = ", ".join((*command.elements, *(("unit",) if wanted else ())))
    names = ", ".join(f"{UNIT_OPEN}{unit.text}{UNIT_CLOSE}" for unit in wanted)
    tail = f"{names}\n\n" if wanted else "None\n"
    return f"{COMMAND_HEAD}{name}{COMMAND_ELEMENTS}{elements}{COMMAND_UNIT}{tail}"


def find_command(name: str) -> Command:
    """The command called `name`; raises ValueError with the nearest known name."""
    if name in COMMANDS:
        return COMMANDS[name]
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(COMMANDS)}"
    raise ValueError(f"unknown task name {name!r}; {hint}")


def _own_units(command: Command) -> tuple[Unit, ...]:
    return () if command.unit is Unit.NONE else (command.unit,)
