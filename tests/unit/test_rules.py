"""Rules about words, units, lengths, prompts and EXIF: a bad record gets its code, a neighbour none."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.entries import Tally, _kept
from data_pipelines.pictures import Pictures
from data_pipelines.records import Dialog, Mask, MediaRef, Prompt, PromptKind, Region, Span, Turn
from data_pipelines.text_rules import split_turns
from data_pipelines.validate import repair, validate
from refvlm_jax import rle
from refvlm_jax.trp.tokens import Unit

WIDTH, HEIGHT = 60, 50


def mask(x: int = 5, y: int = 5, w: int = 10, h: int = 10, side: int = 1) -> Mask:
    """A rectangle on a grid `side` times as fine as the picture."""
    pixels = np.zeros((HEIGHT * side, WIDTH * side), np.uint8)
    pixels[y : y + h, x : x + w] = 1
    return Mask(h=HEIGHT * side, w=WIDTH * side, counts=rle.encode(pixels))


def dialog(unit: Unit = Unit.BOX, **changes: object) -> Dialog:
    task, command, bank = {
        Unit.BOX: ("T13", "detection", "det"), Unit.MASK: ("T14", "segmentation", "seg"),
    }[unit]  # fmt: skip
    turn = Turn(task_name=command, bank=bank, answer="dog, cat.",
                spans=[Span(start=0, end=3, unit=unit, targets=[0])])  # fmt: skip
    base = Dialog(
        uid="u", source="s", split="train", task_id=task, turns=[turn],
        regions=[Region(box=(5.0, 5.0, 15.0, 15.0), mask=mask())],
        image=MediaRef(path="a.png", width=WIDTH, height=HEIGHT),
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def turned(unit: Unit = Unit.BOX, **changes: object) -> Dialog:
    base = dialog(unit)
    return replace(base, turns=[replace(base.turns[0], **changes)])  # type: ignore[arg-type]


def span(start: int, end: int, unit: Unit = Unit.BOX) -> list[Span]:
    return [Span(start=start, end=end, unit=unit, targets=[0])]


def drawn(task: str, kind: PromptKind, region: int, prompt: Mask | None = None) -> Dialog:
    """An interactive question whose prompt is region `region`, and whose target is region 0."""
    unit = Unit.BOX if task == "T21" else Unit.MASK
    name = "grounding_detection" if unit is Unit.BOX else "grounding_segmentation"
    turn = Turn(task_name=name, bank="region_det" if unit is Unit.BOX else "region_seg", answer="dog.",
                spans=span(0, 3, unit), prompts=[Prompt(region=region, kind=kind)])  # fmt: skip
    regions = [*dialog().regions, Region(mask=prompt or mask(6, 6, 3, 3))]
    return dialog(task_id=task, turns=[turn], regions=regions if region else regions[:1])


def rec(expr: str, bank: str = "rec", slot: str = "expr") -> Dialog:
    turn = Turn(task_name="grounding_detection", bank=bank, slots={slot: expr}, answer="dog.",
                spans=span(0, 3))  # fmt: skip
    return dialog(task_id="T17", turns=[turn])


LONG = Turn(task_name="vqa", literal="What?", answer="word " * 1600)
SHORT = Turn(task_name="vqa", literal="What?", answer="word " * 600)
CASES: dict[str, tuple[str, Dialog, Dialog]] = {
    "V01 type": ("V01", dialog(regions=[Region(box=(5.0, 5.0, "15", 15.0))]), dialog()),  # type: ignore[arg-type]
    "V02 size": (
        "V02", dialog(image=MediaRef(path="a.png", width=0, height=50)), dialog(),
    ),
    "V05 area": ("V05", dialog(regions=[Region(box=(5.0, 5.0, 5.5, 6.0))]), dialog()),
    "V05 point": (
        "V05", dialog(regions=[Region(box=(5.0, 5.0, 9.0, 9.0), point=(float("nan"), 0.0))]),
        dialog(regions=[Region(box=(5.0, 5.0, 9.0, 9.0), point=(6.0, 6.0))]),
    ),
    "V06 damaged": ("V06", dialog(regions=[
        Region(mask=replace(mask(), counts=b"7"), box=(5.0, 5.0, 9.0, 9.0))]), dialog()),
    "V06 empty": ("V06", dialog(Unit.MASK, regions=[Region(mask=mask(w=0))]), dialog(Unit.MASK)),
    "V06 box": ("V06", dialog(regions=[Region(box=(30.0, 30.0, 40.0, 40.0), mask=mask())]), dialog()),
    "V07": (
        "V07",
        dialog(Unit.MASK, regions=[Region(mask=mask(900, 900, 1, 1, side=40))]),
        dialog(Unit.MASK, regions=[Region(mask=mask(900, 900, 3, 1000, side=40))]),
    ),
    "V11 newline": ("V11", turned(answer="dog\ncat.", spans=span(0, 7)), turned(answer="dog\ncat.")),
    "V11 plan": ("V11", turned(answer="a Unit: b.", spans=span(0, 9)),
                 turned(answer="a Unit: b.", spans=span(0, 1))),
    "V11 long": ("V11", turned(answer="d" * 201, spans=span(0, 201)),
                 turned(answer="d" * 201, spans=span(0, 200))),
    "V11 blank": ("V11", turned(answer="dog  cat", spans=span(3, 5)), turned(answer="dog  cat")),
    "V11 tag": ("V11", turned(answer="a <REF> b", spans=span(0, 9)),
                turned(answer="a REF b", spans=span(0, 7))),
    "V12 other": (
        "V12", turned(Unit.BOX, spans=span(0, 3, Unit.MASK)),
        # Another unit beside the one that is asked for.
        turned(spans=[*span(0, 3), *span(5, 8, Unit.MASK)]),
    ),
    "V12 text": ("V12", turned(task_name="vqa"), turned(task_name="vqa", spans=[])),
    "V13 slots": (
        "V13", turned(bank="", literal="Who is [VPT]?"),
        turned(bank="", literal="Who is [VPT]?", prompts=[Prompt(region=0, kind=PromptKind.BOX)]),
    ),
    "V15": (
        "V15",
        dialog(regions=[Region(box=(5.0, 5.0, 9.0, 9.0))] * 101, turns=[replace(
            dialog().turns[0], spans=[Span(start=0, end=3, unit=Unit.BOX, targets=list(range(101)))])]),
        dialog(regions=[Region(box=(5.0, 5.0, 9.0, 9.0))] * 100, turns=[replace(
            dialog().turns[0], spans=[Span(start=0, end=3, unit=Unit.BOX, targets=list(range(100)))])]),
    ),
    "V15 masks": (
        "V15",
        dialog(Unit.MASK, regions=[Region(mask=mask())] * 31, turns=[replace(
            dialog(Unit.MASK).turns[0],
            spans=[Span(start=0, end=3, unit=Unit.MASK, targets=list(range(31)))])]),
        dialog(Unit.MASK),
    ),
    "V16": ("V16", dialog(task_id="T05", turns=[LONG], regions=[]),
            dialog(task_id="T05", turns=[SHORT], regions=[])),
    "V16 prompts": (
        "V16",
        dialog(task_id="T12", turns=[replace(SHORT, answer="word " * 1250,
               literal="Say: " + "[VPT] " * 16, prompts=[Prompt(region=0, kind=PromptKind.MASK)] * 16)]),
        dialog(task_id="T12", turns=[replace(SHORT, literal="Say: " + "[VPT] " * 16,
               prompts=[Prompt(region=0, kind=PromptKind.MASK)] * 16)]),
    ),
    "V17 bank": ("V17", turned(bank="dett"), turned(bank="det")),
    "V17 nothing": ("V17", turned(bank=""), turned(bank="", literal="Find all.")),
    "V17 slot": ("V17", rec("the dog", slot="exp"), rec("the dog")),
    "V17 region": ("V17", turned(bank="region_det"), turned(bank="region_det", prompts=[
        Prompt(region=0, kind=PromptKind.BOX)])),
    "V18": ("V18", rec(" "), rec("x")),
    "V18 name": ("V18", dialog(regions=[replace(dialog().regions[0], category="fire_hydrant")]),
                 dialog(regions=[replace(dialog().regions[0], category="fire hydrant")])),
    "V21 target": ("V21", drawn("T21", PromptKind.SCRIBBLE, 0), drawn("T21", PromptKind.SCRIBBLE, 1)),
    "V21 box": ("V21", drawn("T22", PromptKind.BOX, 0), drawn("T22", PromptKind.MASK, 0)),
    "V21 empty": ("V21", drawn("T22", PromptKind.SCRIBBLE, 1, mask(w=0)),
                  drawn("T22", PromptKind.SCRIBBLE, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_bad_record_gets_its_code_and_a_good_one_none(name: str) -> None:
    code, bad, good = CASES[name]
    assert {finding.code for finding in validate(repair(bad))} == {code}
    assert not validate(repair(good)), validate(repair(good))


def test_warnings_leave_their_mark() -> None:
    vanished = repair(CASES["V07"][1])
    assert vanished.regions[0].no_mask_loss and validate(vanished)[0].level == "W"
    assert repair(CASES["V15"][1]).flags == ["overflow"]


def test_a_long_dialogue_is_split_between_turns() -> None:
    turns = [replace(SHORT, literal=f"What {k}?") for k in range(5)]
    whole = dialog(task_id="T05", turns=turns, regions=[])
    assert [f.level for f in validate(whole)] == ["W"]
    pieces = split_turns(whole)
    assert [t for piece in pieces for t in piece.turns] == turns
    assert [piece.uid for piece in pieces] == ["u", "u+2", "u+3"]
    assert not any(validate(piece) for piece in pieces)
    # What is asked in evaluation stays as it is, however long.
    held = replace(whole, split="val")
    assert split_turns(held) == [held]
    (finding,) = validate(replace(held, turns=[LONG]))
    assert (finding.code, finding.level) == ("V16", "W")


@pytest.fixture()
def folder(tmp_path: Path) -> Iterator[Path]:
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    for orientation in (1, 3, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        pixels.save(tmp_path / f"{orientation}.png", exif=exif)
    pixels.save(tmp_path / "copy.bmp")
    Image.new("RGB", (WIDTH, HEIGHT), (9, 9, 9)).save(tmp_path / "flat.png")
    yield tmp_path


def kept(folder: Path, name: str, width: int = WIDTH, height: int = HEIGHT) -> tuple[Tally, list]:
    tally = Tally()
    made = dialog(image=MediaRef(path=name, width=width, height=height))
    return tally, _kept(made, tally, Pictures(folder), frozenset())


def test_turned_pictures_are_read_as_stored_or_dropped(folder: Path) -> None:
    tally, found = kept(folder, "6.png", HEIGHT, WIDTH)
    assert not found and dict(tally.drops.counts) == {"V22": 1} and "6.png" in tally.drops.lines[0]
    for name in ("3.png", "6.png"):
        tally, found = kept(folder, name)
        assert found and dict(tally.flagged) == {"V22": 1}
    tally, found = kept(folder, "1.png")
    assert found and not tally.flagged and not tally.drops.counts
    tally, _ = kept(folder, "1.png", HEIGHT, WIDTH)
    assert dict(tally.drops.counts) == {"V02": 1}


def test_pictures_are_known_by_their_pixels(folder: Path) -> None:
    pictures = Pictures(folder)
    one, two, flat = (
        pictures.check(MediaRef(path=n, width=WIDTH, height=HEIGHT))
        for n in ("1.png", "copy.bmp", "flat.png")
    )
    assert one.digest == two.digest and not one.problem
    assert "one colour" in flat.problem and flat.code == "V02"
    media = MediaRef(path="1.png", width=WIDTH, height=HEIGHT, sha256="00")
    assert "not the picture of the record" in Pictures(folder).check(media).problem
