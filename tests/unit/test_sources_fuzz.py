"""Native files with random damage: no converter ever raises, and every loss is counted."""

import copy
import json
import pickle
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.records import Dialog, decode, encode
from data_pipelines.sources import (
    clevr,
    coco,
    depth,
    explained,
    gqa,
    grounded,
    interactive,
    keypoints,
    link_context,
    llava,
    lvis,
    narratives,
    pointing,
    refcoco,
    refcoco_native,
    region_chats,
    vcr,
    visual_genome,
    vqa,
    vqa_native,
)  # fmt: skip
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


def beside(name: str, content: Any, convert: Callable[..., Iterator[Dialog]]) -> Convert:
    """The converter, with an undamaged second file where it looks for it."""

    def run(path: Path, split: str, folder: str, drops: Drops) -> Iterator[Dialog]:
        (path.parent / name).write_text(json.dumps(content))
        return convert(path, split, folder, drops)

    return run


def pickled(path: Path, split: str, folder: str, drops: Drops) -> Iterator[Dialog]:
    """RefCOCO's refs, which come as a pickle, beside undamaged instances."""
    refs = path.with_suffix(".p")
    rows = [r for r in json.loads(path.read_text()) if isinstance(r, dict)]
    refs.write_bytes(pickle.dumps([{"split": split} | r for r in rows]))
    (path.parent / "instances.json").write_text(json.dumps(COCO))
    # The pickle stands for the JSON that was damaged: errors name it.
    inner = Drops()
    yield from refcoco_native.native(refs, split, folder, inner)
    drops.lines += [line.replace("native.p", "native.json") for line in inner.lines]
    drops.counts += inner.counts


SAID = [{"from": "human", "value": "Who is <region1>?"}, {"from": "gpt", "value": "A dog."}]
NUMBERED = {"image_id": 7, "question": "How many?", "question_id": 70}
NOTE = {"question_id": 70, "multiple_choice_answer": "two", "answers": [{"answer": "two"}]}
COCO_SIZES = {"COCO_train2014_000000000007.jpg": (60, 50)} | SIZES
V7W = {
    "boxes": [{"box_id": k, "x": 5 * k, "y": 5, "width": 9, "height": 9} for k in (1, 2, 3, 4)],
    "images": [{"image_id": 7, "filename": "a.jpg", "split": "train", "qa_pairs": [
        {"qa_id": 9, "question": "Which?", "answer": 3, "multiple_choices": [1, 2, 4]}]}],
}  # fmt: skip
VCR = {
    "annot_id": "t-0", "img_fn": "a.jpg", "objects": ["person", "cup"], "width": 60, "height": 50,
    "boxes": [[1, 1, 20, 40, 0.9], [30, 30, 40, 45, 0.8]], "question": ["Who", "is", [0], "?"],
    "answer_choices": [["No", "."], [[0, 1], "."]], "answer_label": 1,
    "rationale_choices": [["It", "is", [1], "."]], "rationale_label": 0,
}  # fmt: skip
GQA_ROW = {
    "imageId": "a", "question": "Is it?", "answer": "yes", "fullAnswer": "Yes, the kite is.",
    "annotations": {"fullAnswer": {"1": "11"}},
}  # fmt: skip
CLEVR = {
    "question": "How many?", "answer": "1", "image_filename": "a.jpg", "question_index": 3,
    "program": [
        {"function": "scene", "inputs": [], "value_inputs": []},
        {"function": "filter_color", "inputs": [0], "value_inputs": ["red"]},
        {"function": "unique", "inputs": [1], "value_inputs": []},
        {"function": "relate", "inputs": [2], "value_inputs": ["left"]},
        {"function": "count", "inputs": [3], "value_inputs": []},
    ],
}  # fmt: skip
CLEVR_SCENE = {
    "image_filename": "a.jpg", "relationships": {"left": [[1], []]},
    "objects": [
        {"size": "large", "color": color, "material": "metal", "shape": "cube",
         "pixel_coords": [20 * k, 30, 9]} for k, color in ((1, "red"), (2, "blue"))
    ],
}  # fmt: skip
GRAPHS = {"a": {"objects": {"11": {"name": "kite", "x": 10, "y": 5, "w": 10, "h": 10}}}}
GENOME = {
    "id": 7,
    "regions": [
        {
            "region_id": 4,
            "image_id": 7,
            "phrase": "A kite.",
            "x": 1,
            "y": 5,
            "width": 20,
            "height": 10,
        }
    ],
}
FLICKR_GCG = {
    "images": [IMAGE | {"caption": "A dog."}],
    "annotations": [{"image_id": 7, "sam_mask": MASK, "tokens_positive": [[0, 5]]}],
}  # fmt: skip
PUBLISHED: dict[str, tuple[Any, bool, Convert]] = {
    "lvis": (COCO, False, lvis.lvis),
    "coco_rem": (COCO, False, lvis.coco_rem),
    "refs": (
        [{"ref_id": k, "ann_id": 1, "image_id": 7, "sentences": [{"sent_id": k, "sent": "dog"}]}
         for k in (1, 2)],
        False,
        pickled,
    ),
    "genome": (
        [GENOME, GENOME],
        False,
        beside("image_data.json", [{"image_id": 7, "url": "x/VG_100K/7.jpg", "width": 60, "height": 50}],
               visual_genome.regions),
    ),
    "vqa_v2": (
        {"data_subtype": "train2014", "questions": [NUMBERED]},
        False,
        beside("notes.json", {"annotations": [NOTE]},
               lambda path, *rest: vqa_native.vqa_v2(
                   path, *rest, COCO_SIZES, annotations=str(path.parent / "notes.json"))),
    ),
    "pope": (
        [{"question_id": 1, "image": "a.jpg", "text": "Is it?", "label": "no"}],
        True,
        partial(vqa_native.pope, sizes=SIZES),
    ),
    "vqa_e": (
        [{"img_id": 7, "question": "Is it?", "multiple_answers": "yes", "explanation": ["so", 1]}],
        False,
        partial(explained.vqa_e, sizes=COCO_SIZES),
    ),
    "vqa_x": (
        {"70": {"question": "Is it?", "image_id": "7", "image_name": "a.jpg",
                "answers": [{"answer": "yes"}], "explanation": ["so"]}},
        False,
        partial(explained.vqa_x, sizes=SIZES),
    ),
    "gqa": (
        {"201": GQA_ROW},
        False,
        beside("train_sceneGraphs.json", GRAPHS, partial(gqa.gqa, sizes=SIZES)),
    ),
    "clevr": (
        {"questions": [{"question": "Is it?", "answer": "no", "image_filename": "a.jpg"}]},
        False,
        partial(clevr.questions, sizes=SIZES),
    ),
    "clevr_programs": (
        {"questions": [CLEVR]},
        False,
        beside("scenes.json", {"scenes": [CLEVR_SCENE]},
               lambda path, *rest: clevr.questions(
                   path, *rest, SIZES, scenes=str(path.parent / "scenes.json"))),
    ),
    "visual7w": (V7W, False, partial(pointing.visual7w, sizes=SIZES)),
    "point_qa": (
        [{"file_path": "a.jpg", "question": "What?", "answer": "red", "bbox": [1, 1, 30, 30],
          "point": [12.5, 20]}],
        True,
        partial(pointing.point_qa, sizes=SIZES),
    ),
    "vcr": ([VCR, VCR | {"annot_id": "t-1"}], True, vcr.vcr),
    "llava": (
        [{"id": "1", "image": "a.jpg", "conversations": SAID}, {"conversations": SAID}],
        False,
        partial(llava.mix, sizes=SIZES),
    ),
    "osprey": (
        [{"file_name": "a.jpg", "height": 50, "width": 60, "annotation": [{"segmentation": MASK}],
          "conversations": SAID}],
        False,
        partial(region_chats.osprey, kind="lvis"),
    ),
    "llava_grounding": (
        [{"id": "7", "gd_ls": [[1]], "conversations": [
            {"from": "human", "value": "Who?"}, {"from": "gpt", "value": "<g_s> A dog <g_e> <seg>."}]}],
        False,
        beside("instances.json", COCO,
               lambda path, *rest: region_chats.llava_grounding(
                   path, *rest, instances=str(path.parent / "instances.json"))),
    ),
    "gcg_eval": (
        {"annotations": [{"image_id": "a", "caption": "A dog.", "labels": ["A dog"]}]},
        False,
        beside("masks.json", {"annotations": [{"image_id": "a", "segmentation": MASK}]},
               lambda path, *rest: narratives.gcg_eval(
                   path, *rest, SIZES, masks=str(path.parent / "masks.json"))),
    ),
    "flickr_gcg": (FLICKR_GCG, False, narratives.flickr_gcg),
    "refcocog_gcg": (
        [{"img_file_name": "a.jpg", "caption": "A dog.",
          "refs": [{"sentence": "a dog", "segmentation": SQUARE}]}],
        False,
        partial(narratives.refcocog_gcg, sizes=SIZES),
    ),
    "single": (
        [{"image": "a.jpg", "prompt": [MASK] * 4, "target": MASK, "category_name": "dog"}],
        False,
        interactive.single,
    ),
    "nocaps": (COCO, False, coco.nocaps),
    "ade20k": (COCO, False, coco.ade20k),
    "classes": (
        [{"class_id": "1", "class_name": "fox", "samples": ["a.jpg"], "neighbors": [["4", "b", "c"]]}],
        True,
        partial(link_context.imagenet, sizes=SIZES),
    ),
    "isekai": (
        [{"image_name": "a.jpg", "positive_list": ["p"], "negative_list": ["n"],
          "positive_promt": "x", "negative_promt": "y", "label_name": "x"}],
        True,
        partial(link_context.isekai, sizes=SIZES),
    ),
}  # fmt: skip
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


def no_harm(name: str, data: st.DataObject) -> None:
    """Damages the content of a source in one place; converts it, stores and judges the result."""
    content, lines, convert = (SOURCES | PUBLISHED)[name]
    # The lists a file consists of are a matter of the whole file (see the other tests).
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
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_record_never_stops_a_build(name: str, data: st.DataObject) -> None:
    no_harm(name, data)


@pytest.mark.parametrize("name", PUBLISHED)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_record_of_a_published_file_never_stops_a_build(
    name: str, data: st.DataObject
) -> None:
    no_harm(name, data)


@pytest.mark.parametrize("name", SOURCES | PUBLISHED)
def test_undamaged_content_is_kept_whole(name: str, tmp_path: Path) -> None:
    content, lines, convert = (SOURCES | PUBLISHED)[name]
    path = tmp_path / "native.json"
    path.write_text("\n".join(map(json.dumps, content)) if lines else json.dumps(content))
    drops = Drops()
    assert list(convert(path, "train", "", drops)) and not drops.lines
