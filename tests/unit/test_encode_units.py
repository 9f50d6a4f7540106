"""Rows with keypoint and depth targets: geometry, slots, and what is refused."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from tiny_dialogs import HEIGHT, SPEC, WIDTH, dialog, grounding, tokenizer, write_picture

from data_pipelines.encode import EncodeError, EncodeOptions, encode_row
from data_pipelines.records import Depth, Dialog, Region, Turn, decode, encode
from data_pipelines.validate import repair, validate
from refvlm_jax import depth_png
from refvlm_jax.batch import NO_SLOT
from refvlm_jax.geometry import PaddedSquare
from refvlm_jax.trp.tokens import Unit

OPTIONS = EncodeOptions(
    spec=replace(SPEC, kpt_refs=2, kpt_points=3, depth_refs=1, depth_size=WIDTH)
)
SQUARE = PaddedSquare(WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_picture(folder)
    return folder, tokenizer(folder / "tokenizer")


def person(x: float = 4.0) -> Region:
    points = [[x + 1, 8.0, 2.0], [x + 5, 20.0, 1.0], [0.0, 0.0, 0.0]]
    return Region(category="person", box=(x, 6.0, x + 10, 26.0), keypoints=points)


def ground() -> np.ndarray:
    return np.repeat(np.linspace(2.0, 8.0, HEIGHT, dtype=np.float32)[:, None], WIDTH, axis=1)


def deep(values: np.ndarray, kind: str = "metric") -> Region:
    data, scale = depth_png.encode(values)
    return Region(depth=Depth(scale=scale, data=data, kind=kind))


def asked(unit: Unit, targets: list[int]) -> Turn:
    name = "depth" if unit is Unit.DEPTH else "keypoint_detection"
    return replace(grounding([("cup", targets)], unit), task_name=name)


def poses(*people: Region) -> Dialog:
    turn = asked(Unit.KEYPOINT, list(range(len(people))))
    return dialog([turn], regions=list(people), task_id="T23")


def row_of(world, *dialogs: Dialog, counts=None, **spec):
    folder, words = world
    options = replace(OPTIONS, spec=replace(OPTIONS.spec, **spec))
    return encode_row(dialogs, folder, words, options, None, counts=counts)


def test_keypoints_become_fractions_of_the_square(world) -> None:
    people = [person(4.0), person(20.0)]
    row = row_of(world, poses(*people))
    assert row["keypoint_slot"][:3].tolist() == [0, 1, NO_SLOT]
    for k, region in enumerate(people):
        pixels = SQUARE.points_to_pixels(row["keypoints"][k])
        np.testing.assert_allclose(pixels[:2], region.keypoints[:2], atol=1e-4)
        assert row["keypoints"][k, :, 2].tolist() == [2, 1, 0]
        np.testing.assert_allclose(SQUARE.boxes_to_pixels(row["boxes"][k]), region.box, atol=1e-4)
    assert (row["ref_unit"][:2] == Unit.KEYPOINT).all()
    assert (row["mask_slot"] == NO_SLOT).all() and (row["depth_slot"] == NO_SLOT).all()


def test_people_beyond_the_slots_keep_their_text(world) -> None:
    counts = Counter()
    row = row_of(world, poses(person(), person(8.0), person(16.0)), counts=counts)
    assert counts == {"keypoints_without_slot": 1} and row["ref_valid"].sum() == 3
    assert row["keypoint_slot"][:3].tolist() == [0, 1, NO_SLOT]
    counts = Counter()
    row = row_of(world, poses(person()), counts=counts, kpt_refs=0, depth_refs=0)
    assert counts == {"keypoints_without_slot": 1} and row["keypoints"].shape == (0, 3, 3)


def test_later_dialogues_must_find_free_slots(world) -> None:
    counts = Counter()
    first, second = poses(person(), person(8.0)), poses(person(16.0))
    row = row_of(world, first, second, counts=counts)
    assert counts == {"turns_dropped": 1} and row["ref_valid"].sum() == 2
    boxes = dialog([grounding([("cup", [0])])], regions=[person()])
    row = row_of(world, first, boxes)
    assert row["ref_valid"].sum() == 3 and row["ref_unit"][2] == Unit.BOX


def test_a_figure_with_another_number_of_points_is_refused(world) -> None:
    with pytest.raises(EncodeError, match=r"3 keypoints, rows hold 17; give model\.keypoint"):
        row_of(world, poses(person()), kpt_points=17)
    with pytest.raises(EncodeError, match="a target has no keypoints"):
        row_of(world, poses(Region(box=(1, 1, 9, 9))))


def test_depth_lies_on_the_picture_and_nowhere_else(world) -> None:
    values = ground()
    values[:5, :7] = np.nan
    row = row_of(world, dialog([asked(Unit.DEPTH, [0])], regions=[deep(values)], task_id="T25"))
    assert row["depth_slot"][0] == 0 and not row["depth_relative"][0]
    top = SQUARE.offset_y
    inside = row["depth"][0, top : top + HEIGHT]
    np.testing.assert_allclose(inside, np.nan_to_num(values), rtol=2e-3)
    assert not row["depth"][0, :top].any() and not row["depth"][0, top + HEIGHT :].any()


def test_relative_depth_is_marked(world) -> None:
    made = dialog([asked(Unit.DEPTH, [0])], regions=[deep(ground(), "relative")])
    row = row_of(world, made)
    assert row["depth_relative"][0] and row["depth"].max() == 1.0


def test_depth_that_is_unknown_everywhere_has_no_slot(world) -> None:
    counts = Counter()
    made = dialog([asked(Unit.DEPTH, [0])], regions=[deep(np.full((HEIGHT, WIDTH), np.nan))])
    row = row_of(world, made, counts=counts)
    assert counts == {"depth_vanished": 1} and (row["depth_slot"] == NO_SLOT).all()


def test_records_keep_depth_and_read_without_it() -> None:
    made = dialog([asked(Unit.DEPTH, [0])], regions=[deep(ground())], task_id="T25")
    assert decode(encode(made)) == made and not validate(made)
    import msgpack

    raw = msgpack.unpackb(encode(made))
    del raw["regions"][0]["depth"]  # as written before records could hold it
    assert decode(msgpack.packb(raw)).regions[0].depth is None


def test_people_without_joints_stay_for_scoring_and_are_no_targets() -> None:
    hidden = Region(box=(1.0, 1.0, 9.0, 9.0), keypoints=[])
    made = replace(poses(person()), regions=[person(), hidden, Region(box=(1.0, 1.0, 9.0, 9.0))])
    assert repair(made).regions == made.regions[:2] and not validate(made)
    wrong = dialog([asked(Unit.KEYPOINT, [0])], regions=[hidden])
    assert "V10" in {finding.code for finding in validate(wrong)}
