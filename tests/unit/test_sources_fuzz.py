"""Native files with random damage: no converter ever raises, and every loss is counted."""

import copy
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.records import Dialog, decode, encode
from data_pipelines.sources import coco, depth, grounded, interactive, keypoints, refcoco, vqa
from data_pipelines.sources.base import Drops
from data_pipelines.validate import repair, validate
from refvlm_jax import rle

SQUARE = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]]
MASK = {"size": [50, 60], "counts": rle.from_segmentation(SQUARE, 50, 60).decode("ascii")}
IMAGE = {"id": 7, "file_name": "a.jpg", "width": 60, "height": 50}
SIZES = {"a.jpg": (60, 50)}
ANNOTATION = {
    "id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 10, 20, 20], "iscrowd": 0,
    "segmentation": SQUARE, "caption": "A dog.", "keypoints": [12, 14, 2, 20, 22, 1, 0, 0, 0],
}  # fmt: skip
COCO = {
    "images": [IMAGE, IMAGE | {"id": 8}],
    "annotations": [ANNOTATION, ANNOTATION | {"id": 2, "image_id": 8}],
    "categories": [{"id": 1, "name": "dog"}],
}
DRAWN = {f"{kind}_visual_prompt_mask": MASK for kind in ("point", "box", "scribble", "mask")}
REF = {
    "img_path": "a.jpg", "expression": "the dog", "bbox": [10, 10, 30, 30], "mask": SQUARE,
    "height": 50, "width": 60,
}  # fmt: skip
QUESTION = {
    "image_path": "a.jpg", "question": "How many?", "question_id": 5,
    "annotation": {"multiple_choice_answer": "two", "answers": [{"answer": "two"}]},
}  # fmt: skip
FLICKR = {
    "image_id": "a.jpg", "sentence": "A <ph_st>dog<ph_ed>.", "boxes": [[1, 1, 9, 9]],
    "boxes_seq": [[0]],
}  # fmt: skip
PSG = {
    "file_name": "a.jpg", "caption": "A dog runs.",
    "groundings": {"dog": {"token_positives": [2, 5], "rle_masks": [MASK]}},
}  # fmt: skip
Convert = Callable[[Path, str, str, Drops], Iterator[Dialog]]
# Name -> native content, whether it is JSON lines, converter.
SOURCES: dict[str, tuple[Any, bool, Convert]] = {
    "instances": (COCO, False, coco.instances),
    "captions": (COCO, False, coco.captions),
    "expressions": ([REF, REF], True, refcoco.expressions),
    "questions": ([QUESTION, QUESTION], True, partial(vqa.questions, sizes=SIZES)),
    "interactive": (
        [{"image": "a.jpg", "image_info": IMAGE, "anns": [ANNOTATION | DRAWN]}],
        False,
        partial(interactive.regions, categories={1: "dog"}),
    ),
    "flickr": ([FLICKR, FLICKR], True, partial(grounded.flickr_boxes, sizes=SIZES)),
    "psg": ([PSG, PSG], False, grounded.open_psg),
    "keypoints": (COCO, False, keypoints.people),
    "depth": (COCO, False, partial(depth.depth_maps, depth_folder="depth", scale=0.001)),
}
JUNK = st.sampled_from(
    [None, "", "x{y}", -1, 0, 10**12, 1.5, float("nan"), True, [], [None], [[]], {}, {"size": 3}]
)


def places(node: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths of all values below the top level."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def damaged(content: Any, place: tuple, junk: Any) -> Any:
    """A copy with one value replaced, or deleted when `junk` is the string "gone"."""
    copied = copy.deepcopy(content)
    node = copied
    for key in place[:-1]:
        node = node[key]
    if junk == "gone":
        del node[place[-1]]
    else:
        node[place[-1]] = junk
    return copied


@pytest.mark.parametrize("name", SOURCES)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_record_never_stops_a_build(name: str, data: st.DataObject) -> None:
    content, lines, convert = SOURCES[name]
    # The lists a COCO file consists of are a matter of the whole file (see test_sources).
    choices = [p for p in places(content) if not (isinstance(content, dict) and len(p) == 1)]
    place = data.draw(st.sampled_from(choices))
    broken = damaged(content, place, data.draw(JUNK | st.just("gone")))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "native.json"
        rows = "\n".join(map(json.dumps, broken)) if lines else json.dumps(broken)
        path.write_text(rows)
        drops = Drops()
        dialogs = list(convert(path, "train", "", drops))
    assert all("\n" not in line and "native.json" in line for line in drops.lines)
    for dialog in dialogs:
        # What survives can be stored, read back and judged.
        repair(decode(encode(dialog)))
        validate(dialog)


@pytest.mark.parametrize("name", SOURCES)
def test_undamaged_content_is_kept_whole(name: str, tmp_path: Path) -> None:
    content, lines, convert = SOURCES[name]
    path = tmp_path / "native.json"
    path.write_text("\n".join(map(json.dumps, content)) if lines else json.dumps(content))
    drops = Drops()
    assert list(convert(path, "train", "", drops)) and not drops.lines
