"""Validation rules of a Dialog record (the codes are the dataset's, V01 to V25)."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from data_pipelines.records import Dialog, Prompt, PromptKind, Region, Span, Turn, type_problem
from data_pipelines.region_rules import region_findings, vanishing
from data_pipelines.tasks import TASKS
from data_pipelines.text_rules import is_trained, phrase_problem, question_problem, too_long
from refvlm_jax.trp.commands import COMMANDS
from refvlm_jax.trp.parse import parse_answer
from refvlm_jax.trp.render import render_answer
from refvlm_jax.trp.spans import TextSpan, check_free_text, check_spans, closing_order
from refvlm_jax.trp.tokens import Unit

MOST = {"references": 100, "masks": 30, "prompts": 16}
"""What a row of the released sizes holds."""


@dataclass(frozen=True)
class Finding:
    """One broken rule; E rejects the record, W flags it."""

    code: str
    level: str
    message: str


def repair(dialog: Dialog) -> Dialog:
    """The record as it is stored: what only warnings are about is put right.

    Regions that nothing refers to go (crowds and people without joints stay for scoring), masks that
    vanish at the training grid are marked `no_mask_loss` (V07), and a record with more than a row
    holds is marked `overflow` (V15). One that refers to regions it lacks is left to `validate`.
    """
    dialog = _without_unused(dialog)
    if gone := vanishing(dialog):
        regions = [
            replace(r, no_mask_loss=True) if k in gone else r for k, r in enumerate(dialog.regions)
        ]
        dialog = replace(dialog, regions=regions)
    if overflow(dialog) and "overflow" not in dialog.flags:
        dialog = replace(dialog, flags=[*dialog.flags, "overflow"])
    return dialog


def overflow(dialog: Dialog) -> str | None:
    """What a record has more of than a row holds (V15)."""
    many = Counter(s.unit for t in dialog.turns for s in t.spans for _ in s.targets)
    found = {
        "references": many.total(),
        "masks": many[Unit.MASK],
        "prompts": sum(len(t.prompts) for t in dialog.turns),
    }
    over = [f"{n} {what}, at most {MOST[what]}" for what, n in found.items() if n > MOST[what]]
    return "; ".join(over) or None


def _without_unused(dialog: Dialog) -> Dialog:
    used = {p.region for t in dialog.turns for p in t.prompts}
    used |= {k for t in dialog.turns for s in t.spans for k in s.targets}
    if not used <= set(range(len(dialog.regions))):
        return dialog
    keep = [k for k, r in enumerate(dialog.regions) if k in used or _for_scoring(r)]
    if len(keep) == len(dialog.regions):
        return dialog
    new = {old: k for k, old in enumerate(keep)}
    turns = [
        replace(
            turn,
            prompts=[Prompt(region=new[p.region], kind=p.kind) for p in turn.prompts],
            spans=[replace(s, targets=[new[k] for k in s.targets]) for s in turn.spans],
        )
        for turn in dialog.turns
    ]
    return replace(dialog, regions=[dialog.regions[k] for k in keep], turns=turns)


def _for_scoring(region: Region) -> bool:
    return region.is_crowd or region.keypoints == []


def validate(dialog: Dialog) -> list[Finding]:
    """All broken rules of a record that can be checked without its picture."""
    return [Finding(code, level, message) for code, level, message in _findings(dialog)]


def _findings(dialog: Dialog) -> Iterator[tuple[str, str, str]]:
    if problem := type_problem(dialog):
        yield "V01", "E", f"{problem}; correct the source's row"
        return
    if dialog.task_id not in TASKS:
        yield "V01", "E", f"unknown task {dialog.task_id!r}"
    if not dialog.turns:
        yield "V03", "E", "no turn"
    yield from region_findings(dialog)
    for number, turn in enumerate(dialog.turns):
        yield from ((c, level, f"turn {number}: {m}") for c, level, m in _turn(turn, dialog))
    if problem := overflow(dialog):
        yield "V15", "W", problem
    if problem := too_long(dialog.turns, dialog.image is not None):
        # A held-out question is asked whatever the length of its answer.
        level = "E" if len(dialog.turns) == 1 and is_trained(dialog) else "W"
        yield "V16", level, problem


def _turn(turn: Turn, dialog: Dialog) -> Iterator[tuple[str, str, str]]:
    if turn.task_name not in COMMANDS:
        yield "V01", "E", f"unknown command {turn.task_name!r}"
    if not turn.answer and "empty_target" not in dialog.flags:
        yield "V03", "E", "empty answer"
    for prompt in turn.prompts:
        if not 0 <= prompt.region < len(dialog.regions):
            yield "V13", "E", f"prompt region {prompt.region} does not exist"
        elif not _has_prompt(dialog.regions[prompt.region], prompt.kind):
            yield "V13", "E", f"region {prompt.region} cannot be shown as {prompt.kind.name}"
    if found := question_problem(turn):
        yield found[0], "E", found[1]
    if problem := _unit_problem(turn, dialog.task_id):
        yield "V12", "E", problem
    yield from _spans(turn, dialog)


def _unit_problem(turn: Turn, task_id: str) -> str | None:
    """An answer without the unit that is asked for; others may stand beside it."""
    if turn.task_name not in COMMANDS or task_id not in TASKS or not turn.spans:
        return None
    asked = {COMMANDS[turn.task_name].unit, TASKS[task_id].unit} - {Unit.NONE}
    used = {span.unit for span in turn.spans}
    if used & asked and COMMANDS[turn.task_name].unit is not Unit.NONE:
        return None
    names = sorted(unit.text for unit in used)
    wanted = " or ".join(sorted(unit.text for unit in asked)) or "text alone"
    return f"spans of {', '.join(names)} answer command {turn.task_name!r}, which asks for {wanted}"


def _has_prompt(region: Region, kind: PromptKind) -> bool:
    if kind is PromptKind.BOX:
        return region.box is not None
    if kind is PromptKind.POINT:
        return any(v is not None for v in (region.point, region.box, region.mask))
    return region.mask is not None


def _spans(turn: Turn, dialog: Dialog) -> Iterator[tuple[str, str, str]]:
    for span in turn.spans:
        yield from _targets(span, dialog)
    spans = [TextSpan(s.start, s.end, s.unit, len(s.targets)) for s in turn.spans]
    if problem := phrase_problem(turn):
        yield "V11", "E", problem
        return
    try:
        for value in (turn.literal.replace("[VPT]", ""), *turn.slots.values()):
            check_free_text(value, "question")
        check_free_text(turn.answer, "answer")
    except ValueError as error:
        yield "V14", "E", str(error)
        return
    try:
        check_spans(turn.answer, spans)
    except ValueError as error:
        yield "V10", "E", str(error)
        return
    if not _round_trip(turn.answer, spans):
        yield "V25", "E", "the rendered answer does not read back as written"


def _targets(span: Span, dialog: Dialog) -> Iterator[tuple[str, str, str]]:
    if not span.targets or len(set(span.targets)) != len(span.targets):
        yield "V10", "E", f"span [{span.start}, {span.end}): no targets, or one twice"
    for k in span.targets:
        if not 0 <= k < len(dialog.regions):
            yield "V10", "E", f"target region {k} does not exist"
            continue
        region = dialog.regions[k]
        payload = {
            Unit.BOX: region.box, Unit.MASK: region.mask, Unit.POINT: region.point,
            Unit.KEYPOINT: region.keypoints or None, Unit.DEPTH: region.depth,
        }.get(span.unit)  # fmt: skip
        if payload is None:
            yield "V10", "E", f"target region {k} has no {span.unit.text}"
        if region.is_crowd:
            yield "V19", "E", f"crowd region {k} is a target"


def _round_trip(answer: str, spans: list[TextSpan]) -> bool:
    parsed = parse_answer(render_answer(answer, spans).text)
    want = [(s.start, s.end, s.unit, s.count) for s in (spans[i] for i in closing_order(spans))]
    have = [(g.start, g.end, g.unit, g.ref_count) for g in parsed.groups]
    return parsed.plain == answer and want == have
