"""Validation rules of a Dialog record (the codes are the dataset's, V01 to V25)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from data_pipelines.records import Depth, Dialog, MediaRef, Prompt, PromptKind, Region, Span, Turn
from data_pipelines.tasks import TASKS
from refvlm_jax.trp.commands import COMMANDS
from refvlm_jax.trp.parse import parse_answer
from refvlm_jax.trp.render import render_answer
from refvlm_jax.trp.spans import TextSpan, check_free_text, check_spans, closing_order
from refvlm_jax.trp.tokens import Unit


@dataclass(frozen=True)
class Finding:
    """One broken rule; E rejects the record, W flags it."""

    code: str
    level: str
    message: str


def repair(dialog: Dialog) -> Dialog:
    """Without regions that nothing refers to; crowds and people without joints stay for scoring.

    A record that refers to regions it lacks is left to `validate`.
    """
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
    if dialog.task_id not in TASKS:
        yield "V01", "E", f"unknown task {dialog.task_id!r}"
    if not dialog.turns:
        yield "V03", "E", "no turn"
    for number, region in enumerate(dialog.regions):
        yield from _region(number, region, dialog)
    for number, turn in enumerate(dialog.turns):
        yield from ((c, level, f"turn {number}: {m}") for c, level, m in _turn(turn, dialog))
    refs = sum(len(s.targets) for t in dialog.turns for s in t.spans)
    if refs > 100:
        yield "V15", "W", f"{refs} references"


def _region(number: int, region: Region, dialog: Dialog) -> Iterator[tuple[str, str, str]]:
    image = dialog.image
    if image is None:
        yield "V04", "E", f"region {number} without a picture"
        return
    if region.box is not None:
        x1, y1, x2, y2 = region.box
        if not (0 <= x1 < x2 <= image.width and 0 <= y1 < y2 <= image.height):
            yield "V05", "E", f"region {number}: box {region.box} not inside the picture"
    if region.mask is not None:
        wide = region.mask.w * image.height
        if abs(wide - region.mask.h * image.width) > 0.01 * wide:
            yield "V06", "E", f"region {number}: mask and picture differ in aspect"
    if region.keypoints and (problem := keypoint_problem(region.keypoints, image)):
        yield "V08", "E", f"region {number}: {problem}"
    if region.depth is not None and (problem := _depth_problem(region.depth)):
        yield "V09", "E", f"region {number}: {problem}"


def keypoint_problem(points: Sequence[Sequence[float]], image: MediaRef) -> str | None:
    """What is wrong with the joints [K, 3] of a person, or None."""
    if any(len(p) != 3 or not all(map(math.isfinite, p)) for p in points):
        return "keypoints are not finite x, y, v triples"
    if any(v not in (0, 1, 2) for _, _, v in points):
        return "a visibility of the keypoints is not 0, 1 or 2"
    labelled = [(x, y) for x, y, v in points if v]
    if not labelled:
        return "no keypoint is labelled"
    if any(not (-1 <= x <= image.width + 1 and -1 <= y <= image.height + 1) for x, y in labelled):
        return f"a labelled keypoint lies outside the {image.width}x{image.height} picture"
    return None


def _depth_problem(depth: Depth) -> str | None:
    """What is wrong with a depth map as far as the record tells (see also `depths.depth_problem`)."""
    if depth.kind not in ("metric", "relative"):
        return f"depth kind {depth.kind!r} is neither metric nor relative"
    if not (math.isfinite(depth.scale) and depth.scale > 0 and math.isfinite(depth.offset)):
        return f"depth scale {depth.scale} or offset {depth.offset} is no number to use"
    return None if depth.path or depth.data else "the depth has neither a file nor bytes"


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
    yield from _spans(turn, dialog)


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
