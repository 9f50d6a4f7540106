"""CLEVR: questions about rendered solids, with programs that are run to give reasons."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipelines.records import Dialog, Region, Span
from data_pipelines.sources.base import Drops, RecordError, need, read_json
from data_pipelines.sources.dialogs import dialog_of, turn_of, words
from data_pipelines.sources.sizes import Sizes, sized_picture
from refvlm_jax.trp.tokens import Unit

_ATTRIBUTES = ("size", "color", "material", "shape")
"""In the order in which they are named."""
_BESIDE = {
    "left": "left of it", "right": "right of it", "front": "in front of it", "behind": "behind it",
}  # fmt: skip


def questions(
    path: Path, split: str, folder: str, drops: Drops, sizes: Sizes, *, scenes: str = ""
) -> Iterator[Dialog]:
    """T03 of every question that has an answer; with scenes T04, its program in words, and X2.

    X2 is T04 with a point on every solid it speaks of. Neither is given where the program, run on
    the scene, does not come to the question's answer.

    Args:
      path: `CLEVR_{split}_questions.json` of CLEVR v1.0 or CoGenT.
      split: split of the records.
      folder: folder of the pictures of that split.
      drops: takes unusable records.
      sizes: sizes of the pictures.
      scenes: `CLEVR_{split}_scenes.json`; by default the one in `scenes/` beside the folder of
        `path`, if it is there.
    """
    path = Path(path)
    content = read_json(path, keys=("questions",))
    name = path.name.replace("_questions", "_scenes")
    beside = Path(scenes) if scenes else path.parent.parent / "scenes" / name
    known = _scenes(beside, drops) if scenes or beside.is_file() else {}
    for place, row in enumerate(content["questions"]):
        found: list[Dialog] = []
        with drops.guard(f"{path}, question at index {place}"):
            found = [_short(row, place, split, folder, sizes)]
        yield from found
        if not found or row["image_filename"] not in known:
            continue
        with drops.guard(f"{path}, program of the question at index {place}"):
            found = _reasoned(row, known[row["image_filename"]], found[0])
            yield from found


def _scenes(path: Path, drops: Drops) -> dict[str, dict[str, Any]]:
    found = {}
    for place, row in enumerate(read_json(path, keys=("scenes",))["scenes"]):
        with drops.guard(f"{path}, scene at index {place}"):
            found[need(row, "image_filename", "objects", "relationships")[0]] = row
    return found


def _short(row: dict[str, Any], place: int, split: str, folder: str, sizes: Sizes) -> Dialog:
    question, answer, name = need(row, "question", "answer", "image_filename")
    answer = words(str(answer), "answer")
    slots = {"question": words(question, "question")}
    turn = turn_of("T03", f"The answer is {answer}.", slots=slots, references=[answer])
    image = sized_picture(name, folder, sizes)
    number = row.get("question_index", place)
    known = {"image_id": row.get("image_index", 0), "question_id": number}
    return dialog_of("T03", ("clevr", split, number), image, [turn], **known)


def _reasoned(row: dict[str, Any], scene: dict[str, Any], short: Dialog) -> list[Dialog]:
    """T04 and X2 of a question whose short form is known."""
    (program,) = need(row, "program")
    answer, text, spans = explain(program, scene)
    wanted = words(str(row["answer"]), "answer")
    if answer != wanted:
        raise RecordError("V10", f"the program gives {answer!r}, the answer is {wanted!r}; drop it")
    image, slots = short.image, short.turns[0].slots
    assert image is not None
    regions = [
        Region(category=solid["shape"], point=(float(x), float(y)))
        for solid in scene["objects"]
        for x, y, *_ in (need(solid, "pixel_coords")[0],)
    ]
    if any(not (0 <= x <= image.width and 0 <= y <= image.height)
           for x, y in (r.point for r in regions if r.point)):  # fmt: skip
        raise RecordError("V05", "a solid lies outside the picture; drop the scene")
    uid = (short.source, short.split, short.provenance["question_id"])
    plain = turn_of("T04", text, slots=slots, references=[text])
    found = [dialog_of("T04", uid, image, [plain], **short.provenance)]
    if spans:
        pointed = turn_of("X2", text, slots=slots, spans=spans, references=[text])
        found.append(dialog_of("X2", uid, image, [pointed], regions, **short.provenance))
    return found


@dataclass
class _Step:
    """What a step of a program comes to."""

    solids: list[int] = field(default_factory=list)
    """Objects it selects; empty for steps that come to a value."""
    value: str = ""
    named: dict[str, str] = field(default_factory=dict)
    """Attributes its filters asked for."""
    suffix: str = ""
    """How it relates to what was spoken of before."""


def explain(program: list[dict[str, Any]], scene: dict[str, Any]) -> tuple[str, str, list[Span]]:
    """Runs a program: its answer, the sets it went through in words, and points of their objects.

    Raises:
      RecordError: a function or a step that CLEVR does not know.
    """
    steps: list[_Step] = []
    text, spans = "", []
    for k, node in enumerate(program):
        name = _name(node)
        (inputs,) = need(node, "inputs")
        if any(type(j) is not int or not 0 <= j < k for j in inputs):
            raise RecordError("V01", f"step {k} of the program uses steps {inputs!r}; drop it")
        values = node.get("value_inputs") or node.get("side_inputs") or []
        steps.append(_run(name, [steps[j] for j in inputs], values, scene))
        if _is_said(program, k):
            sentence, span = _sentence(name, steps[-1], len(text))
            text += f"{sentence} "
            spans += span
    if not steps:
        raise RecordError("V03", "an empty program; drop the question")
    return steps[-1].value, f"{text}So the answer is {steps[-1].value}.", spans


def _name(node: dict[str, Any]) -> str:
    name = node.get("function") or node.get("type")
    return words(name, "function", "V01")


def _is_said(program: list[dict[str, Any]], k: int) -> bool:
    """Whether a step's set is spoken of: the last one of a chain of filters, or a union."""
    name = _name(program[k])
    chain = name.startswith(("filter_", "same_", "relate")) or name in ("scene", *_TOGETHER)
    return chain and not any(_name(node).startswith("filter_") for node in program[k + 1 : k + 2])


_TOGETHER = {"union": "Together there are", "intersect": "In both there are"}


def _sentence(name: str, step: _Step, start: int) -> tuple[str, list[Span]]:
    many = len(step.solids)
    if name in _TOGETHER:
        opening = f"{_TOGETHER[name]} "
    else:
        opening = "There is " if many == 1 else "There are "
    named = [step.named[a] for a in _ATTRIBUTES if a in step.named]
    noun = "" if "shape" in step.named else "thing"
    phrase = " ".join([*named, *([noun] if noun else [])]) + ("" if many == 1 else "s")
    phrase += f" {step.suffix}" if step.suffix else ""
    opening += f"{many or 'no'} "
    at = start + len(opening)
    span = Span(start=at, end=at + len(phrase), unit=Unit.POINT, targets=step.solids)
    return f"{opening}{phrase}.", [span] if many else []


def _run(name: str, inputs: list[_Step], values: list[str], scene: dict[str, Any]) -> _Step:
    kind, _, attribute = name.partition("_")
    try:
        if name == "scene":
            return _Step(list(range(len(scene["objects"]))))
        if name == "unique":
            (one,) = inputs[0].solids
            return _Step([one], named=inputs[0].named, suffix=inputs[0].suffix)
        if name in _JUDGED:
            return _Step(value=_JUDGED[name](*inputs))
        if name == "relate":
            near = scene["relationships"][values[0]][inputs[0].solids[0]]
            return _Step(sorted(near), suffix=_BESIDE[values[0]])
        if name in _TOGETHER:
            first, second = (set(step.solids) for step in inputs)
            return _Step(sorted(first | second if name == "union" else first & second))
        if attribute in _ATTRIBUTES:
            return _by_attribute(kind, attribute, inputs, values, scene["objects"])
    except (ValueError, LookupError, TypeError) as error:
        raise RecordError(
            "V10", f"step {name!r} does not fit the scene ({error}); drop it"
        ) from None
    raise RecordError("V01", f"unknown function {name!r} in the program; drop the question")


def _by_attribute(
    kind: str, attribute: str, inputs: list[_Step], values: list[str], objects: list[dict[str, Any]]
) -> _Step:
    given = inputs[0]
    if kind == "filter":
        kept = [k for k in given.solids if objects[k][attribute] == values[0]]
        return _Step(kept, named=given.named | {attribute: values[0]}, suffix=given.suffix)
    if kind == "query":
        return _Step(value=objects[given.solids[0]][attribute])
    if kind == "same":
        (one,) = given.solids
        like = [k for k, o in enumerate(objects) if o[attribute] == objects[one][attribute]]
        return _Step([k for k in like if k != one], suffix=f"of the same {attribute}")
    if kind == "equal":
        return _Step(value=_yes(given.value == inputs[1].value))
    raise LookupError(f"{kind}_{attribute}")


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


_JUDGED: dict[str, Callable[..., str]] = {
    "count": lambda a: str(len(a.solids)),
    "exist": lambda a: _yes(bool(a.solids)),
    "equal_integer": lambda a, b: _yes(int(a.value) == int(b.value)),
    "less_than": lambda a, b: _yes(int(a.value) < int(b.value)),
    "greater_than": lambda a, b: _yes(int(a.value) > int(b.value)),
}
"""Steps that come to a value by the size of sets."""
