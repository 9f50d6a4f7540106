"""From the unit decoders' arrays to references in picture pixels, without a model."""

import numpy as np
import pytest

from refvlm_jax.infer.answers import Reference, TextAnswer
from refvlm_jax.infer.engine import Answer, Engine, Request
from refvlm_jax.models.refvlm import UnitOutputs
from refvlm_jax.models.units.dispatch import SlotMap
from refvlm_jax.models.units.keypoint import KeypointOutputs
from refvlm_jax.trp.parse import parse_answer
from refvlm_jax.trp.tokens import Unit

WIDTH, HEIGHT = 80, 60  # ten rows of padding above and below
REFS, POINTS = 3, 4


class Words:
    eos_id, pad_id = 0, 0


def assembled(unit: Unit, outputs: UnitOutputs, count: int = 1, kind: str = "metric") -> Answer:
    engine = Engine(lambda _: None, {}, Words(), max_new=1, slots=REFS, depth_kind=kind)
    parts = {"phrase": 0.25, "ref": 1.0}
    references = [
        Reference(group=0, position=k, unit=unit, phrase="it", score_parts=dict(parts))
        for k in range(count)
    ]
    text = TextAnswer(
        text="", parsed=parse_answer(""), tokens=[], finished=True, references=references
    )
    request = Request(width=WIDTH, height=HEIGHT, unit=unit)
    return engine._assemble(text, request, outputs, 0)


def poses() -> KeypointOutputs:
    points = np.full((1, REFS, POINTS, 2), 0.5, np.float32)
    points[0, 0, 1] = (0.25, 0.75)
    visibility = np.zeros((1, REFS, POINTS, 2), np.float32)
    visibility[0, 0, 0] = (-2.0, 2.0)
    boxes = np.zeros((1, REFS, 4), np.float32)
    boxes[0, 0] = (0.5, 0.5, 0.5, 0.25)  # only the first reference has a query slot
    return KeypointOutputs(points=points, visibility=visibility, boxes=boxes, first_boxes=boxes)


def slot_map(*filled: int) -> SlotMap:
    slot = np.array([[*filled, *[-1] * (REFS - len(filled))]])
    empty = np.zeros((1, 1, 1), np.int32)
    return SlotMap(slot, np.zeros((1, REFS), np.int32), empty, empty.astype(bool))


def units(**fields) -> UnitOutputs:
    return UnitOutputs(**{"boxes": None, "mask_logits": None, "mask_slots": None, **fields})


def test_joints_come_back_in_pixels_with_their_visibility() -> None:
    (found,) = assembled(Unit.KEYPOINT, units(keypoints=poses())).references
    np.testing.assert_allclose(found.keypoints[:2, :2], [[40.0, 30.0], [20.0, 50.0]])
    seen = 1 / (1 + np.exp(-4.0))
    np.testing.assert_allclose(found.keypoints[:, 2], [seen, 0.5, 0.5, 0.5], rtol=1e-6)
    assert found.box == pytest.approx((20.0, 20.0, 60.0, 40.0))
    assert found.score_parts["decoder"] == pytest.approx((seen + 1.5) / 4)
    assert found.score == pytest.approx(0.5 * (seen + 1.5) / 4)


def test_figures_without_a_query_slot_are_overflow() -> None:
    answer = assembled(Unit.KEYPOINT, units(keypoints=poses()), count=2)
    assert len(answer.references) == 1 and answer.overflow == 1
    broken = poses()
    broken.points[0, 0, 2] = np.nan
    assert assembled(Unit.KEYPOINT, units(keypoints=broken)).overflow == 1


def test_depth_covers_the_picture_only() -> None:
    depth = np.repeat(np.arange(1.0, 81.0, dtype=np.float32)[:, None], 80, axis=1)
    outputs = units(depth=depth[None, None, None], depth_slots=slot_map(0))
    (found,) = assembled(Unit.DEPTH, outputs, kind="relative").references
    assert found.depth.shape == (HEIGHT, WIDTH) and found.depth_kind == "relative"
    np.testing.assert_allclose(found.depth[:, 0], np.arange(11.0, 71.0))
    assert found.score == pytest.approx(0.5)
    assert assembled(Unit.DEPTH, outputs, count=2).overflow == 1


def test_a_unit_that_the_model_lacks_is_overflow() -> None:
    for unit in (Unit.KEYPOINT, Unit.DEPTH, Unit.BOX, Unit.MASK, Unit.POINT):
        assert assembled(unit, units()).overflow == 1
