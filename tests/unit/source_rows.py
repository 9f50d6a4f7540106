"""One native file of every source family, as small as it can be: what converter tests damage."""

import json
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.records import Dialog
from data_pipelines.sources import (
    clevr,
    coco,
    depth,
    explained,
    gqa,
    grit,
    grounded,
    interactive,
    keypoints,
    link_context,
    llava,
    lvis,
    narratives,
    panoptic,
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


def in_folder(convert: Callable[..., Iterator[Dialog]]) -> Convert:
    """The converter of a folder of files, of which the damaged one is the only one."""

    def run(path: Path, split: str, folder: str, drops: Drops) -> Iterator[Dialog]:
        rows = path.parent / "rows"
        rows.mkdir(exist_ok=True)
        (rows / path.name).write_text(path.read_text())
        return convert(rows, split, folder, drops)

    return run


def with_map(convert: Callable[..., Iterator[Dialog]], **beside: Any) -> Convert:
    """The converter, with a panoptic map of one segment and undamaged files where it looks."""

    def run(path: Path, split: str, folder: str, drops: Drops) -> Iterator[Dialog]:
        maps = path.parent / "maps"
        if not maps.is_dir():
            maps.mkdir()
            ids = np.zeros((50, 60, 3), np.uint8)
            ids[10:30, 10:30, 0] = 5
            Image.fromarray(ids).save(maps / "a.png")
        given = {"maps": str(maps)}
        for name, content in beside.items():
            (path.parent / f"{name}.json").write_text(json.dumps(content))
            given[name] = str(path.parent / f"{name}.json")
        return convert(path, split, folder, drops, **given)

    return run


PANOPTIC = {
    "images": [IMAGE],
    "annotations": [{"image_id": 7, "file_name": "a.png", "segments_info": [
        {"id": 5, "category_id": 1, "iscrowd": 0}]}],
    "categories": [{"id": 1, "name": "dog", "isthing": 1}],
}  # fmt: skip
THING = {
    "id": 3,
    "bbox": [10, 10, 30, 30],
    "segmentation": MASK,
    "labels": ["dog"],
    "attributes": ["wet dog"],
}
LISTED: dict[str, tuple[Any, bool, Convert]] = {
    "grit": (
        {"row": {"key": "a", "width": 60, "height": 50, "caption": "A dog runs.",
                 "noun_chunks": [[0, 5, 0.1, 0.1, 0.5, 0.6, 1.0]],
                 "ref_exps": [[0, 5, 0.1, 0.1, 0.5, 0.6, 1.0]]}},
        False,
        # The only row is the file.
        lambda path, *rest: in_folder(grit.grit)(_unwrapped(path), *rest),
    ),
    "grand": (
        {"a.jpg": {"objects": [THING], "floating_objects": [], "dense_caption": {
            "caption": "A dog runs.", "details": []}, "short_captions": [{"caption": "A dog runs.",
            "details": [{"phrase": "A dog", "tokens_positive": [0, 5], "id": 3}]}],
            "width": 60, "height": 50, "image_id": "a"}},
        False,
        in_folder(grit.grand),
    ),
    "llava_captions": (
        [{"id": "1", "image": "a.jpg", "conversations": SAID}],
        False,
        partial(llava.captions, sizes=SIZES),
    ),
    "okvqa": (
        {"data_subtype": "train2014", "questions": [NUMBERED]},
        False,
        beside("notes.json", {"annotations": [NOTE]},
               lambda path, *rest: vqa_native.okvqa(
                   path, *rest, COCO_SIZES, annotations=str(path.parent / "notes.json"))),
    ),
    "coco_panoptic": (PANOPTIC, False, with_map(panoptic.segments)),
    "png": (
        [{"image_id": "7", "caption": "A dog runs.", "segments": [
            {"utterance": "A dog", "segment_ids": ["5"]}, {"utterance": "runs.", "segment_ids": []}]}],
        False,
        with_map(narratives.narratives, panoptic=PANOPTIC),
    ),
}  # fmt: skip
"""Families whose files are folders, maps, or much like another's."""


def _unwrapped(path: Path) -> Path:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content.get("row", content)))
    return path


EVERYTHING = SOURCES | PUBLISHED | LISTED
