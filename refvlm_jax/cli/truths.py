"""Questions of a held-out dataset and their ground truth for scoring."""

import base64
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.records import Depth, Dialog, Mask, PromptKind, Region, Turn
from data_pipelines.templates import render as render_template
from refvlm_jax.eval.overlay import RegionPrompt
from refvlm_jax.eval.records import DepthMap, Instance, Triplet, Truth
from refvlm_jax.trp.format import AnswerStyle
from refvlm_jax.trp.render import render_answer
from refvlm_jax.trp.spans import TextSpan


@dataclass(frozen=True)
class Question:
    """One turn of a dialogue; the turns before it, with their true answers, are its history."""

    dialog: Dialog
    number: int = 0

    @property
    def turn(self) -> Turn:
        """The turn that is asked."""
        return self.dialog.turns[self.number]

    @property
    def uid(self) -> str:
        """That of the dialogue, and behind `#` the number of a later turn."""
        return f"{self.dialog.uid}#{self.number}" if self.number else self.dialog.uid


def select(dialogs: Iterable[Dialog], limit: int | Mapping[str, int]) -> list[Question]:
    """At most `limit` questions of each task (0 or not named = all), chosen by a hash of the uid.

    Every supervised turn is a question. The choice is the same on every machine and does not depend
    on the order of the records.
    """
    by_task: dict[str, list[Question]] = defaultdict(list)
    for dialog in dialogs:
        asked = [Question(dialog, n) for n, turn in enumerate(dialog.turns) if turn.supervise]
        by_task[dialog.task_id] += asked
    chosen = []
    for task in sorted(by_task):
        ranked = sorted(by_task[task], key=lambda q: hashlib.sha256(q.uid.encode()).digest())
        most = limit if isinstance(limit, int) else limit.get(task, 0)
        chosen += ranked[:most] if most else ranked
    return chosen


def truth_of(
    question: Question, style: AnswerStyle = "plan", image_root: Path | None = None
) -> Truth:
    """Ground truth of a question, in pixels of its picture.

    Args:
      style: how the answer was asked to refer.
      image_root: folder of the dataset's files, for those of depth maps.
    """
    root = Path(image_root or ".").absolute()
    dialog, turn = question.dialog, question.turn
    image = dialog.image
    if image is None:
        raise ValueError(f"{dialog.uid}: only dialogues about a picture are scored")
    spans = [TextSpan(s.start, s.end, s.unit, len(s.targets)) for s in turn.spans]
    triplets = [
        Triplet(
            phrase=turn.answer[span.start : span.end],
            unit=span.unit.text,
            char_span=(span.start, span.end),
            instances=[_instance(dialog.regions[k], root) for k in span.targets],
        )
        for span in turn.spans
    ]
    return Truth(
        uid=question.uid,
        task_id=dialog.task_id,
        image=image.path,
        image_id=_image_id(dialog),
        width=image.width,
        height=image.height,
        question=words_of(turn),
        answer=turn.answer,
        raw=render_answer(turn.answer, spans).text,
        references=list(turn.references) or [turn.answer],
        triplets=triplets,
        ignore=[_instance(r, root) for r in dialog.regions if r.is_crowd or r.keypoints == []],
        style=style,
    )


def _image_id(dialog: Dialog) -> int | str:
    """The dataset's id of the picture; the path where pictures have names instead."""
    found = dialog.provenance.get("image_id")
    if isinstance(found, str) or (isinstance(found, int) and found >= 0):
        return found
    return dialog.image.path if dialog.image else ""


def words_of(turn: Turn) -> str:
    """The question as evaluation asks it: always the first template of its bank."""
    return turn.literal or render_template(turn.bank, turn.slots, regions=len(turn.prompts))


def _instance(region: Region, root: Path) -> Instance:
    return Instance(
        box=region.box,
        rle=rle_of(region.mask),
        keypoints=region.keypoints,
        depth=None if region.depth is None else _depth_of(region.depth, root),
    )


def _depth_of(depth: Depth, root: Path) -> DepthMap:
    data = depth.data
    return DepthMap(
        path="" if data is not None else os.path.normpath(root / depth.path),
        png="" if data is None else base64.b64encode(data).decode("ascii"),
        scale=depth.scale,
        offset=depth.offset,
        invalid=depth.invalid,
        kind=depth.kind,
    )


def rle_of(mask: Mask | None) -> dict[str, Any] | None:
    """A mask as records carry it."""
    if mask is None:
        return None
    return {"size": [mask.h, mask.w], "counts": mask.counts.decode("ascii")}


def drawn_prompts(question: Question) -> list[RegionPrompt]:
    """The region prompts of a question as they are drawn on the picture."""
    found = []
    for prompt in question.turn.prompts:
        region = question.dialog.regions[prompt.region]
        if prompt.kind is PromptKind.BOX:
            found.append(RegionPrompt(box=region.box))
        elif prompt.kind is PromptKind.POINT and region.point is not None:
            found.append(RegionPrompt(point=region.point))
        else:
            found.append(RegionPrompt(rle=rle_of(region.mask)))
    return found
