"""Flickr30k Entities: sentences whose phrases are tied to boxes."""

import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.records import Dialog, MediaRef, Region, Span
from data_pipelines.sources.base import Drops, RecordError, SourceError, box_xyxy, picture
from data_pipelines.sources.dialogs import dialog_of, tighten, turn_of, words
from refvlm_jax.trp.tokens import Unit

_PHRASE = re.compile(r"\[/EN#(\d+)(?:/\w+)+ ([^\]]*)\]")


class Sentence(NamedTuple):
    """Plain text, and the entity of each phrase with its range."""

    text: str
    phrases: list[tuple[int, int, str]]


def entities(path: Path, split: str, folder: str, drops: Drops) -> Iterator[Dialog]:
    """T19 of every sentence with boxes, and T01 of every sentence (in evaluation, picture).

    Args:
      path: folder with Annotations/, Sentences/ and {split}.txt.
      split: train, val or test.
      folder: folder of the pictures.
      drops: takes unusable records.
    """
    for number in _numbers(Path(path), split):
        found: list[Dialog] = []
        with drops.guard(f"{path}, picture {number}"):
            found = list(_dialogs(Path(path), number, split, folder, drops))
        yield from found


def _numbers(root: Path, split: str) -> list[str]:
    listed = root / f"{split}.txt"
    for needed in (listed, root / "Annotations", root / "Sentences"):
        if not needed.exists():
            raise SourceError(f"{needed}: not found; see data_pipelines/sources/README.md")
    return listed.read_text(encoding="utf-8").split()


def _dialogs(root: Path, number: str, split: str, folder: str, drops: Drops) -> Iterator[Dialog]:
    image, boxes = _annotation(root / "Annotations" / f"{number}.xml", folder)
    sentences = _sentences(root / "Sentences" / f"{number}.txt", drops)
    known: dict[str, Any] = {"image_id": int(number)}
    for place, sentence in sentences:
        regions, spans = _grounded(sentence, boxes, image)
        if spans:
            turn = turn_of("T19", sentence.text, spans=spans)
            uid = ("flickr30k", split, f"{number}/{place}")
            yield dialog_of("T19", uid, image, [turn], regions, **known)
    texts = [s.text for _, s in sentences]
    # Evaluation asks once a picture: the other sentences are only references there.
    for place, sentence in sentences if split == "train" else sentences[:1]:
        turn = turn_of("T01", sentence.text, references=texts)
        yield dialog_of("T01", ("flickr30k", split, f"{number}/{place}"), image, [turn], **known)


def _annotation(path: Path, folder: str) -> tuple[MediaRef, dict[str, list[list[float]]]]:
    """The picture, and the boxes of every entity."""
    try:
        root = ET.parse(path).getroot()
    except OSError:
        raise RecordError("V01", f"{path} cannot be read; fetch it again") from None
    except ET.ParseError as error:
        raise RecordError("V01", f"{path} is not XML ({error}); fetch it again") from None
    size = [int(_text(root, f"size/{side}")) for side in ("width", "height")]
    image = picture(_text(root, "filename"), folder, *size)
    boxes: dict[str, list[list[float]]] = defaultdict(list)
    for found in root.iter("object"):
        box = found.find("bndbox")
        if box is None:  # a scene, or not to be seen
            continue
        # Counted from 1; the dataset's own tools take 1 off all four.
        corners = [float(_text(box, key)) - 1 for key in ("xmin", "ymin", "xmax", "ymax")]
        for name in found.iter("name"):
            boxes[(name.text or "").strip()].append(corners)
    return image, boxes


def _text(node: ET.Element, key: str) -> str:
    found = node.findtext(key)
    if found is None:
        raise RecordError("V01", f"no <{key}> in <{node.tag}>; is it another file version?")
    return found.strip()


def _sentences(path: Path, drops: Drops) -> list[tuple[int, Sentence]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        raise RecordError("V01", f"{path} cannot be read; fetch it again") from None
    found = []
    for place, line in enumerate(lines):
        if line.strip():
            with drops.guard(f"{path}:{place + 1}"):
                found.append((place, parse_sentence(line)))
    return found


def parse_sentence(line: str) -> Sentence:
    """ "[/EN#1/people A man] runs ." -> "A man runs.", with the range of "A man" as entity 1."""
    plain, phrases, last = "", [], 0
    for match in _PHRASE.finditer(line := " ".join(line.split())):
        plain += line[last : match.start()]
        phrases.append((len(plain), len(plain) + len(match[2]), match[1]))
        plain += match[2]
        last = match.end()
    plain += line[last:]
    if "[/EN#" in plain:
        raise RecordError("V01", "an entity mark is not closed; correct the sentence")
    text, moved = tighten(words(plain, "sentence"), [(s, e) for s, e, _ in phrases])
    return Sentence(text, [(s, e, k) for (s, e), (_, _, k) in zip(moved, phrases, strict=True)])


def _grounded(
    sentence: Sentence, boxes: dict[str, list[list[float]]], image: MediaRef
) -> tuple[list[Region], list[Span]]:
    regions: list[Region] = []
    first: dict[str, int] = {}
    spans = []
    for start, end, entity in sentence.phrases:
        if entity not in boxes:
            continue
        if entity not in first:
            first[entity] = len(regions)
            regions += [Region(box=box_xyxy(box, image)) for box in boxes[entity]]
        targets = list(range(first[entity], first[entity] + len(boxes[entity])))
        spans.append(Span(start=start, end=end, unit=Unit.BOX, targets=targets))
    return regions, spans
