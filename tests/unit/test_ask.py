"""Questions from the command line: what is asked, what is refused, what is shown."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from data_pipelines.images import ImageError
from data_pipelines.records import PromptKind
from data_pipelines.tasks import TASKS
from refvlm_jax.cli.ask import question_of, shown
from refvlm_jax.cli.truths import words_of
from refvlm_jax.eval.overlay import RegionPrompt, standalone_svg
from refvlm_jax.eval.records import Instance, Prediction, Triplet


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "street.png"
    Image.fromarray(np.full((30, 40, 3), 128, np.uint8)).save(path)
    return path


def test_words_fill_the_slot_of_the_task(picture: Path) -> None:
    asked = question_of(picture, TASKS["T17"], "the {tall} tree")
    assert "the {tall} tree" in words_of(asked.turn) and not asked.turn.prompts
    image = asked.dialog.image
    assert image is not None and (image.width, image.height) == (40, 30)
    assert "why?" in words_of(question_of(picture, TASKS["T03"], "why?").turn)
    assert words_of(question_of(picture, TASKS["T05"], "Tell me more.").turn) == "Tell me more."


@pytest.mark.parametrize(
    ("task", "given", "kind"),
    [("T08", {"point": [3, 4]}, PromptKind.POINT), ("T22", {"box": [1, 2, 9, 8]}, PromptKind.BOX)],
)
def test_regions(picture: Path, task: str, given: dict, kind: PromptKind) -> None:
    asked = question_of(picture, TASKS[task], **given)
    assert asked.turn.prompts[0].kind is kind and len(asked.dialog.regions) == 1


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        ("T17", {}, r"T17 \(referring comprehension\) needs --words"),
        ("T13", {"words": "cats"}, "takes no --words"),
        ("T08", {}, "give --point"),
        ("T08", {"box": [1, 2, 3, 4]}, "takes no --box"),
        ("T01", {"point": [1, 2]}, "takes no --point"),
        ("T22", {"point": [1, 2], "box": [1, 2, 3, 4]}, "not both"),
    ],
)
def test_what_cannot_be_asked(picture: Path, task: str, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        question_of(picture, TASKS[task], **given)


def test_pictures_that_cannot_be_read(picture: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.png: picture cannot be read"):
        question_of(tmp_path / "nowhere.png", TASKS["T01"])
    turned = Image.open(picture)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    with pytest.raises(ImageError, match=r"stored rotated .*upright"):
        question_of(tmp_path / "turned.jpg", TASKS["T01"])


def test_an_answer_is_told_and_drawn() -> None:
    box = Instance(box=(1.0, 2.0, 10.0, 20.0), score=0.5)
    answer = Prediction(
        uid="ask/street.png", turn=0, task_id="T17", image="street.png", width=40, height=30,
        raw="", plain="A tree & a <house>.", finish="eos", n_tokens=5,
        triplets=[
            Triplet(phrase="A tree", unit="box", char_span=(0, 6), instances=[box]),
            Triplet(phrase="a <house>", unit="box", char_span=(9, 18)),
        ],
    )  # fmt: skip
    assert shown(answer) == [
        "A tree & a <house>.",
        "  A tree: box 1.0, 2.0, 10.0, 20.0 (confidence 0.50)",
        "  a <house>: nothing decoded",
    ]
    drawing = standalone_svg(np.zeros((30, 40, 3), np.uint8), answer, [RegionPrompt(point=(3, 4))])
    root = ElementTree.fromstring(drawing)
    boxes = [e for e in root.iter() if e.tag.endswith("rect") and e.get("width") == "9.00"]
    assert root.tag.endswith("svg") and len(boxes) == 2
    assert any(e.tag.endswith("style") and ".picture" in (e.text or "") for e in root.iter())
