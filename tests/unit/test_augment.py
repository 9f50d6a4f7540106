"""Augmentation: pictures, regions and words change together or not at all."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_dialogs
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.augment import MIRRORED, Change, Colour, apply_change, draw_change
from data_pipelines.augment_guards import allowed
from data_pipelines.depths import load_depth
from data_pipelines.encode import encode_row
from data_pipelines.options import EncodeOptions
from data_pipelines.records import (
    Depth,
    Dialog,
    Mask,
    MediaRef,
    Prompt,
    PromptKind,
    Region,
    Span,
    Turn,
)
from data_pipelines.validate import validate
from refvlm_jax import depth_png, rle
from refvlm_jax.cli.truths import Question, truth_of
from refvlm_jax.config.errors import ConfigError
from refvlm_jax.config.resolve import resolve
from refvlm_jax.config.schema import AugmentConfig
from refvlm_jax.eval.oracle import oracle
from refvlm_jax.eval.score import score
from refvlm_jax.trp.tokens import Unit

ROOT = Path()
MARK = (200, 40, 90)
TASKS = {
    Unit.BOX: ("T13", "detection", "ap"), Unit.MASK: ("T14", "segmentation", "ap"),
    Unit.KEYPOINT: ("T23", "keypoint_detection", "oks"), Unit.DEPTH: ("T25", "depth", "delta1"),
}  # fmt: skip


def drawn(
    rng: np.random.Generator, width: int, height: int, unit: Unit, answer: str = "cup."
) -> tuple[np.ndarray, Dialog]:
    """A noisy picture with one marked ellipse, and a dialogue that refers to it."""
    pixels = rng.integers(0, 150, (height, width, 3), np.uint8)
    x, y = rng.integers(0, width - 12), rng.integers(0, height - 12)
    w, h = rng.integers(6, 12, 2)
    rows, cols = np.mgrid[:height, :width]
    inside = ((cols - x - w / 2) / (w / 2)) ** 2 + ((rows - y - h / 2) / (h / 2)) ** 2 <= 1
    pixels[inside] = MARK
    counts = rle.encode(inside)
    tight = rle.tight_box(counts, height, width)
    assert tight is not None
    # Joints sit on marked pixels, so that the picture tells where they went.
    places = np.argwhere(inside)[rng.integers(0, inside.sum(), 17)]
    joints = [[c + 0.5, r + 0.5, 2.0] for r, c in places]
    joints[3] = [0.0, 0.0, 0.0]
    samples = pixels[..., 0].astype(np.uint16) + 1
    region = Region(
        category="cup", box=tuple(map(float, tight)), point=(joints[0][0], joints[0][1]),
        mask=Mask(h=height, w=width, counts=counts), keypoints=joints,
        depth=Depth(scale=0.01, data=depth_png.encode_samples(samples), kind="relative"),
    )  # fmt: skip
    task, command, _ = TASKS[unit]
    span = Span(start=0, end=3, unit=unit, targets=[0])
    turn = Turn(task_name=command, literal="Where is [VPT]?", answer=answer, spans=[span],
                prompts=[Prompt(region=0, kind=PromptKind.POINT)])  # fmt: skip
    dialog = Dialog(
        uid="u", source="s", split="train", task_id=task, turns=[turn], regions=[region],
        image=MediaRef(path="a.png", width=width, height=height),
    )  # fmt: skip
    return pixels, dialog


CONFIG = AugmentConfig(flip=0.5, scale=(0.5, 2.5), colour=0.0)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32), width=st.integers(24, 61), height=st.integers(24, 61),
    unit=st.sampled_from(list(TASKS)),
)  # fmt: skip
def test_regions_stay_on_what_they_mean(seed: int, width: int, height: int, unit: Unit) -> None:
    rng = np.random.default_rng(seed)
    pixels, dialog = drawn(rng, width, height, unit)
    image = dialog.image
    assert image is not None
    change = draw_change([dialog], image, CONFIG, rng)
    (moved,) = apply_change([dialog], change, ROOT)
    shown, region = change.picture(pixels), moved.regions[0]
    assert moved.image is not None and region.mask is not None and region.keypoints
    assert shown.shape == (moved.image.height, moved.image.width, 3)
    mask = rle.decode(region.mask.counts, region.mask.h, region.mask.w)
    assert ((shown == MARK).all(-1) == mask.astype(bool)).all()
    assert region.box == rle.tight_box(region.mask.counts, region.mask.h, region.mask.w)
    seen = [(x, y) for x, y, v in region.keypoints if v]
    assert len(seen) == 16
    assert all(mask[int(y), int(x)] for x, y in [*seen, region.point or (-1, -1)])
    depth = load_depth(region.depth, moved.image, ROOT)  # type: ignore[arg-type]
    real = shown[..., 0] + 1.0
    known = np.isfinite(depth)
    assert np.allclose(depth[known], 0.01 * real[known], rtol=1e-5) and known.sum() > 100
    assert not validate(moved)
    # Who knows the moved truth scores perfectly against it.
    if region.depth is not None:  # only metres are scored
        region.depth.kind = "metric"
    truth = truth_of(Question(moved), image_root=ROOT)
    scores = score([truth], {"u": oracle(truth)}, resamples=0)[moved.task_id]
    assert scores[TASKS[unit][2]] >= 1 - 1e-6


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), unit=st.sampled_from(list(TASKS)))
def test_mirrored_twice_is_as_before(seed: int, unit: Unit) -> None:
    pixels, dialog = drawn(np.random.default_rng(seed), 41, 30, unit)
    flip = Change(41, 30, (0, 0, 41, 30), flip=True)
    (once,) = apply_change([dialog], flip, ROOT)
    (twice,) = apply_change([once], flip, ROOT)
    assert (flip.picture(flip.picture(pixels)) == pixels).all()
    assert once != dialog and replace(twice, regions=[]) == replace(dialog, regions=[])
    before, after = dialog.regions[0], twice.regions[0]
    assert after.mask == before.mask and after.box == before.box
    assert np.allclose(after.keypoints or [], before.keypoints or [])
    assert before.depth is not None and after.depth is not None
    one, two = (
        depth_png.decode_samples(d.data or b"", 41, 30) for d in (before.depth, after.depth)
    )
    assert (one == two).all()


def test_joints_change_sides_in_a_mirror() -> None:
    _, dialog = drawn(np.random.default_rng(0), 40, 30, Unit.KEYPOINT)
    joints = dialog.regions[0].keypoints or []
    (moved,) = apply_change([dialog], Change(40, 30, (0, 0, 40, 30), flip=True), ROOT)
    new = moved.regions[0].keypoints or []
    assert new[5] == [40 - joints[6][0], joints[6][1], 2.0] and new[0][0] == 40 - joints[0][0]
    assert new[4] == [0.0, 0.0, 0.0] and len(MIRRORED[17]) == 8
    few = replace(dialog, regions=[replace(dialog.regions[0], keypoints=joints[:5])])
    always = AugmentConfig(flip=1.0)
    assert dialog.image is not None
    assert not draw_change([few], dialog.image, always, np.random.default_rng(0)).flip
    assert draw_change([dialog], dialog.image, always, np.random.default_rng(0)).flip


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_zoom_keeps_all_that_is_referred_to(seed: int) -> None:
    rng = np.random.default_rng(seed)
    _, dialog = drawn(rng, 64, 48, Unit.BOX)
    x, y = rng.integers(0, 50), rng.integers(0, 36)
    far = Region(box=(float(x), float(y), x + 9.5, y + 9.25))
    span = replace(dialog.turns[0].spans[0], targets=[0, 1])
    both = replace(
        dialog, regions=[*dialog.regions, far, Region(box=(0.0, 0.0, 4.0, 4.0))],
        turns=[replace(dialog.turns[0], spans=[span])],
    )  # fmt: skip
    assert both.image is not None
    change = draw_change([both], both.image, AugmentConfig(scale=(1.2, 4.0)), rng)
    (moved,) = apply_change([both], change, ROOT)
    box = moved.regions[1].box
    assert box is not None and np.allclose(np.diff(np.reshape(box, (2, 2)), axis=0), [9.5, 9.25])
    aside = moved.regions[2].box
    assert aside is None or max(aside) <= 4.0 + max(change.window[2:])


def test_zooms_and_flips_happen() -> None:
    _, dialog = drawn(np.random.default_rng(1), 64, 48, Unit.BOX)
    assert dialog.image is not None
    found = [
        draw_change([dialog], dialog.image, CONFIG, np.random.default_rng(k)) for k in range(60)
    ]
    widths = [change.window[2] for change in found]
    assert min(widths) < 50 and max(widths) > 90 and 15 < sum(c.flip for c in found) < 45
    again = draw_change([dialog], dialog.image, CONFIG, np.random.default_rng(7))
    assert again == found[7]


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ("the leftmost cup", {"flip", "crop"}), ("his right-hand man", {"flip", "crop"}),
        ("topleft one", {"flip", "crop"}), ("cup on rt", {"flip", "crop"}),
        ("at [0.1,0.2]", {"flip", "crop", "pad"}), ("what does the sign say", {"flip"}),
        ("a bright day", {"hue", "light"}), ("the red cup", {"hue"}), ("what color is it", {"hue"}),
        ("biggest cup", {"crop"}), ("second from the top", {"crop"}), ("the cup", set()),
        ("a frightened copilot", set()),
    ],
)  # fmt: skip
def test_words_forbid_what_would_make_them_wrong(words: str, refused: set[str]) -> None:
    _, dialog = drawn(np.random.default_rng(2), 40, 30, Unit.BOX)
    turn = dialog.turns[0]
    asked = replace(turn, literal="", bank="rec", slots={"expr": words})
    places = [
        replace(turn, literal=f"{words}?"), asked, replace(turn, answer=f"cup, {words}."),
        replace(turn, references=[words]),
    ]  # fmt: skip
    for place in places:
        # In any turn of any dialogue of the row.
        may = allowed([dialog, replace(dialog, turns=[turn, place])])
        assert {k for k, v in vars(may).items() if not v} == refused, place


def test_a_zoom_spares_metres_and_free_text() -> None:
    _, dialog = drawn(np.random.default_rng(2), 40, 30, Unit.DEPTH)
    region = dialog.regions[0]
    assert region.depth is not None
    metres = replace(dialog, regions=[replace(region, depth=replace(region.depth, kind="metric"))])
    assert not allowed([metres]).pad and not allowed([metres]).crop and allowed([metres]).flip
    said = replace(dialog, turns=[Turn(task_name="vqa", literal="What is it?", answer="A cup.")])
    assert not allowed([said]).crop and allowed([said]).pad


def test_colours_change_the_picture_alone() -> None:
    pixels, dialog = drawn(np.random.default_rng(3), 40, 30, Unit.BOX)
    change = Change(40, 30, (0, 0, 40, 30), colour=Colour(brightness=1.2, saturation=0.7, hue=0.2))
    shown = change.picture(pixels)
    assert shown.shape == pixels.shape and (shown != pixels).mean() > 0.5
    assert apply_change([dialog], change, ROOT) == [dialog]
    full_turn = replace(change, colour=Colour(hue=1.0))
    assert np.abs(full_turn.picture(pixels).astype(int) - pixels).max() <= 8  # HSV has 8 bits


def test_rows_follow_the_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    pixels, dialog = drawn(rng, 40, 32, Unit.MASK, answer="cup.")
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tokenizer = tiny_dialogs.tokenizer(tmp_path / "tok")
    plain = EncodeOptions(spec=tiny_dialogs.SPEC)
    turned = replace(plain, augment=AugmentConfig(flip=1.0))

    def row(options: EncodeOptions, seed: int | None = 0, root: Path = tmp_path):
        draw = None if seed is None else np.random.default_rng(seed)
        return encode_row([dialog], root, tokenizer, options, draw)

    before, after = row(plain), row(turned)
    assert (after["images"][0] == before["images"][0][:, ::-1]).all()
    assert (after["masks"][0] == before["masks"][0][:, ::-1]).all()
    assert (after["prompt_masks"][0] == before["prompt_masks"][0][:, ::-1]).all()
    # Nothing is changed in evaluation, and the same row is changed in the same way again.
    assert (row(turned, None)["images"] == row(plain, None)["images"]).all()
    zoom = replace(plain, augment=CONFIG)
    first, second = row(zoom, 5), row(zoom, 5)
    assert all((first[name] == second[name]).all() for name in first)
    # Coordinates written as text are those of the changed picture.
    boxes = replace(dialog, turns=[replace(dialog.turns[0], spans=[
        replace(dialog.turns[0].spans[0], unit=Unit.BOX)])])  # fmt: skip
    one, two = (encode_row([boxes], tmp_path, tokenizer, o, np.random.default_rng(0))
                for o in (plain, turned))  # fmt: skip
    assert np.allclose(two["boxes"][0], one["boxes"][0] * [-1, 1, 1, 1] + [1, 0, 0, 0])
    written = [
        tokenizer.decode(encode_row([boxes], tmp_path, tokenizer, replace(o, register="coord"),
                                    np.random.default_rng(0))["tokens"].tolist())
        for o in (plain, turned)
    ]  # fmt: skip
    assert written[0] != written[1]


def test_bad_settings_are_named() -> None:
    for augment in ({"flip": 1.5}, {"scale": (2.0, 1.0)}, {"hue": 0.7}, {"colour": -1.0}):
        with pytest.raises(ConfigError, match=f"data.augment.{next(iter(augment))}"):
            resolve({"name": "x", "data": {"augment": augment}})
    assert json.dumps(vars(resolve({"name": "x", "data": {"augment": {"flip": 0.5}}}).data.augment))
