"""Osprey-724K and LLaVA-Grounding: conversations about masked regions."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.records import Dialog, MediaRef, PromptKind, Region, Span, Turn
from data_pipelines.sources.base import (
    Drops,
    RecordError,
    SourceError,
    box_of,
    mask_of,
    need,
    picture,
    read_json,
    read_list,
    region,
)
from data_pipelines.sources.coco import media
from data_pipelines.sources.dialogs import dialog_of, shown, turn_of, words
from data_pipelines.sources.llava import exchanges
from data_pipelines.sources.panoptic import picture_rows
from refvlm_jax.trp.tokens import PROMPT_SLOT, Unit

_TAG = re.compile(r"<region(\d+)>")
_DESCRIBED = re.compile(r"^\s*<[^>]*>\s*:\s*(.*)$", re.DOTALL)
_SHORT = " Answer with a word or a short phrase."
KINDS = ("conversation", "short", "lvis", "detail")
_MARKED = re.compile(r"<g_s>\s*(.*?)\s*<g_e>\s*<seg>")
_ASKS = re.compile(r"\s*\(with grounding\)\s*")


def osprey(
    path: Path, split: str, folder: str, drops: Drops, *, kind: str = "conversation"
) -> Iterator[Dialog]:
    """T12 of every item {file_name, height, width, annotation, conversations or description}.

    Args:
      path: one of the five JSON files.
      split: split of the records.
      folder: folder of the pictures.
      drops: takes unusable records.
      kind: "conversation" introduces the regions, then talks about them by number; "short" does so
        and wants few words (the part-level and short-form files); "lvis" shows regions where they
        are named; "detail" asks about one region after the other.
    """
    if kind not in KINDS:
        raise SourceError(f"{path}: unknown kind {kind!r} of Osprey file; known: {KINDS}")
    for number, item in enumerate(read_list(path)):
        found: list[Dialog] = []
        with drops.guard(f"{path}, item {number}"):
            name, height, width, rows = need(item, "file_name", "height", "width", "annotation")
            image = picture(name, folder, width, height)
            regions = [_masked(need(row, "segmentation")[0], image) for row in rows]
            turns = _details(item, regions) if kind == "detail" else _chat(item, regions, kind)
            uid = ("osprey", split, f"{kind}-{Path(path).stem}-{number}")
            found = [dialog_of("T12", uid, image, turns, regions)]
        yield from found


def _masked(segmentation: Any, image: MediaRef) -> Region:
    mask = mask_of(segmentation, image)
    return Region(box=box_of(mask), mask=mask)


def _chat(item: dict[str, Any], regions: list[Region], kind: str) -> list[Turn]:
    turns = []
    for place, (question, answer) in enumerate(exchanges(item)):
        prompts: list[int] = []
        if kind == "lvis":
            prompts = [_numbered(k, regions) for k in _TAG.findall(question)]
            question = _TAG.sub(PROMPT_SLOT, question)
        elif place == 0:
            prompts = list(range(len(regions)))
            listed = ", ".join(f"region{k + 1} {PROMPT_SLOT}" for k in prompts)
            question = f"Marked in the picture: {listed}.\n{question}"
        question = _TAG.sub(r"region\1", question) + (_SHORT if kind == "short" else "")
        answer = _TAG.sub(r"region\1", answer)
        shown_now = shown(PromptKind.MASK, *prompts)
        turns.append(turn_of("T12", answer, question=question, prompts=shown_now))
    return turns


def _numbered(number: str, regions: list[Region]) -> int:
    if not 1 <= int(number) <= len(regions):
        raise RecordError("V13", f"region{number} of {len(regions)} regions; drop the item")
    return int(number) - 1


def _details(item: dict[str, Any], regions: list[Region]) -> list[Turn]:
    (texts,) = need(item, "description")
    if len(texts) != len(regions):
        raise RecordError("V10", f"{len(texts)} descriptions of {len(regions)} regions; drop it")
    turns = []
    for k, text in enumerate(texts):
        match = _DESCRIBED.match(text)
        answer = words(match[1] if match else text, "description")
        turns.append(turn_of("T12", answer, prompts=shown(PromptKind.MASK, k)))
    return turns


class _Annotations:
    """COCO-style instances by picture id and by annotation id."""

    def __init__(self, path: Path, drops: Drops):
        content = read_json(path, keys=("images", "annotations"))
        self.images = picture_rows(content, path, drops)
        self.of_image: dict[int, dict[int, Any]] = defaultdict(dict)
        for place, row in enumerate(content["annotations"]):
            with drops.guard(f"{path}, annotation at index {place}"):
                image_id, number = need(row, "image_id", "id")
                self.of_image[image_id][number] = row

    def image(self, number: int, folder: str) -> MediaRef:
        if number not in self.images:
            raise RecordError("V02", f"image {number} is not in the instances file; drop the row")
        return media(self.images[number], folder)


class _Pool:
    """Regions of a dialogue, each annotation once."""

    def __init__(self, rows: dict[int, Any], image: MediaRef):
        self.rows, self.picture = rows, image
        self.regions: list[Region] = []
        self.places: dict[int, int] = {}

    def place(self, number: int) -> int:
        """Index of an annotation's region."""
        if number not in self.rows:
            raise RecordError("V10", f"annotation {number} is not in the instances file; drop it")
        if number not in self.places:
            self.places[number] = len(self.regions)
            found = region(self.rows[number], self.picture)
            found.is_crowd = False  # it is meant as it stands
            self.regions.append(found)
        return self.places[number]


def llava_grounding(
    path: Path, split: str, folder: str, drops: Drops, *, instances: str, prompts: bool = False
) -> Iterator[Dialog]:
    """T20 in the source's words, or with `prompts` T12.

    Args:
      path: `grounded_visual_chat_data.json`: {id, conversations, gd_ls}, one list of annotation ids
        (or null) for each `<g_s> phrase <g_e> <seg>`; with `prompts`
        `llava_instruct_150k_visual_prompt.json`: {id, conversations, q_gd_ls}, one list (or null)
        for each question, whose `<obj>` stand for its ids.
      split: split of the records.
      folder: folder of the pictures of the instances file.
      drops: takes unusable records.
      instances: COCO-style file with the annotations.
      prompts: which of the two files it is.
    """
    annotations = _Annotations(Path(instances), drops)
    for number, row in enumerate(read_list(path)):
        found: list[Dialog] = []
        with drops.guard(f"{path}, row {number}"):
            image_id = int(need(row, "id")[0])
            image = annotations.image(image_id, folder)
            pool = _Pool(annotations.of_image[image_id], image)
            turns = (_asked if prompts else _grounded)(row, pool)
            wanted = "T12" if prompts else "T20"
            uid = ("llava_grounding", split, number)
            found = [dialog_of(wanted, uid, image, turns, pool.regions, image_id=image_id)]
        yield from found


def _asked(row: dict[str, Any], pool: _Pool) -> list[Turn]:
    lists = row["q_gd_ls"] if "q_gd_ls" in row else need(row, "gd_ls")[0]
    pairs = exchanges(row)
    if len(lists) != len(pairs):
        raise RecordError("V10", f"{len(lists)} id lists for {len(pairs)} questions; drop the row")
    turns = []
    for (question, answer), ids in zip(pairs, lists, strict=True):
        if question.count("<obj>") != len(ids or []):
            raise RecordError("V13", f"{len(ids or [])} ids for the <obj> of {question!r:.60}")
        places = [pool.place(k) for k in ids or []]
        question = question.replace("<obj>", PROMPT_SLOT)
        answer = answer.replace("<obj>", "the region")
        shown_now = shown(PromptKind.MASK, *places)
        turns.append(turn_of("T12", answer, question=question, prompts=shown_now))
    return turns


def _grounded(row: dict[str, Any], pool: _Pool) -> list[Turn]:
    pairs, lists = exchanges(row), list(row.get("gd_ls") or [])
    marks = sum(len(_MARKED.findall(answer)) for _, answer in pairs)
    if marks != len(lists) or not marks:
        raise RecordError("V10", f"{len(lists)} id lists for {marks} phrases; drop the row")
    turns = []
    for question, answer in pairs:
        plain, spans, last = "", [], 0
        for match in _MARKED.finditer(answer):
            plain += answer[last : match.start()]
            targets = [pool.place(k) for k in lists.pop(0) or []]
            if targets:
                targets = list(dict.fromkeys(targets))
                end = len(plain) + len(match[1])
                spans.append(Span(start=len(plain), end=end, unit=Unit.MASK, targets=targets))
            plain += match[1]
            last = match.end()
        plain += answer[last:]
        question = _ASKS.sub(" ", question).strip()
        wanted = "T20" if spans else "T05"
        turns.append(turn_of(wanted, plain, question=question, spans=spans))
    return turns
