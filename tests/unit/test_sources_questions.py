"""VQAv2, OK-VQA, POPE, VQA-E, VQA-X, GQA, CLEVR, Visual7W, PointQA and VCR as published."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from native_files import SIZES, photo, phrases, sound, write, write_lines

from data_pipelines.records import Dialog, PromptKind
from data_pipelines.sources import clevr, explained, gqa, pointing, vcr, vqa_native
from data_pipelines.sources.base import Drops, SourceError
from data_pipelines.sources.sizes import PictureSizes
from data_pipelines.templates import render
from refvlm_jax.trp.tokens import Unit

NAME = "COCO_val2014_000000000007.jpg"
COCO_SIZES = {NAME: (60, 50), "COCO_test2015_000000000007.jpg": (60, 50)}


def read(convert: Callable, path: Path, *rest: Any, **options: Any) -> tuple[list[Dialog], Drops]:
    drops = Drops()
    return sound(list(convert(path, "val", "pics", drops, *rest, **options))), drops


def asked(dialog: Dialog, number: int = 0) -> str:
    """The question as the first template of its bank puts it."""
    turn = dialog.turns[number]
    return render(turn.bank, turn.slots, regions=len(turn.prompts))


def questions(tmp_path: Path, name: str, subtype: str, rows: list[dict[str, Any]]) -> Path:
    return write(tmp_path / name, {"questions": rows, "data_subtype": subtype, "info": {}})


ASKED = {"image_id": 7, "question": "How  many?", "question_id": 70}


def test_vqa_v2_joins_questions_and_annotations(tmp_path: Path) -> None:
    path = questions(
        tmp_path, "v2_OpenEnded_mscoco_val2014_questions.json", "val2014",
        [ASKED, ASKED | {"question_id": 71}, ASKED | {"question_id": 72, "image_id": 8}],
    )  # fmt: skip
    note = {
        "question_id": 70, "image_id": 7, "multiple_choice_answer": "two",
        "answers": [{"answer": "two", "answer_id": 1}, {"answer": "2", "answer_id": 2}],
    }  # fmt: skip
    write(tmp_path / "v2_mscoco_val2014_annotations.json", {"annotations": [note]})
    (dialog,), drops = read(vqa_native.vqa_v2, path, COCO_SIZES)
    assert dialog.uid == "vqa_v2/val/70/T03"
    assert dialog.image and dialog.image.path == f"pics/{NAME}"
    turn = dialog.turns[0]
    assert (turn.slots, turn.answer) == ({"question": "How many?"}, "The answer is two.")
    assert turn.references == ["two", "2"] and dict(drops.counts) == {"V03": 1, "V02": 1}
    (tmp_path / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(SourceError, match=r"v2_mscoco_val2014_annotations\.json: not found"):
        read(vqa_native.vqa_v2, path, COCO_SIZES)


def test_test_questions_have_no_answers(tmp_path: Path) -> None:
    name = "v2_OpenEnded_mscoco_test-dev2015_questions.json"
    path = questions(tmp_path, name, "test-dev2015", [ASKED])
    (dialog,), _ = read(vqa_native.vqa_v2, path, COCO_SIZES)
    assert dialog.image and dialog.image.path == "pics/COCO_test2015_000000000007.jpg"
    assert dialog.flags == ["eval_only", "empty_target"] and dialog.turns[0].answer == ""


def test_okvqa_takes_the_most_frequent_answer(tmp_path: Path) -> None:
    path = questions(tmp_path, "OpenEnded_mscoco_val2014_questions.json", "val2014", [ASKED])
    answers = [{"answer": a, "raw_answer": a} for a in ("ride", "race", "race")]
    note = {"question_id": 70, "image_id": 7, "answers": answers, "question_type": "four"}
    write(tmp_path / "mscoco_val2014_annotations.json", {"annotations": [note]})
    (dialog,), _ = read(vqa_native.okvqa, path, COCO_SIZES)
    assert dialog.turns[0].answer == "The answer is race."
    assert dialog.turns[0].references == ["ride", "race", "race"]


def test_pope_rows(tmp_path: Path) -> None:
    row = {"question_id": 1, "image": "a.jpg", "text": "Is there a kite?", "label": "no"}
    path = write_lines(tmp_path / "coco_pope_popular.json", [row, row | {"label": "maybe"}])
    (dialog,), drops = read(vqa_native.pope, path, SIZES)
    assert dialog.uid == "pope/val/popular-1/T03" and dialog.flags == ["eval_only"]
    assert dialog.turns[0].answer == "The answer is no." and drops.counts["V03"] == 1


def test_reasons_come_before_answers(tmp_path: Path) -> None:
    row = {
        "img_id": 7, "question": "Is it windy?", "multiple_answers": "yes", "answers": ["yes"] * 10,
        "explanation": ["a kite is in the air", 0.8],
    }  # fmt: skip
    path = write(tmp_path / "VQA-E_val_set.json", [row, row | {"explanation": []}])
    (dialog,), drops = read(explained.vqa_e, path, COCO_SIZES)
    assert dialog.turns[0].answer == "A kite is in the air. So the answer is yes."
    assert dialog.uid == "vqa_e/val/0/T04" and dialog.provenance["image_id"] == 7
    assert drops.counts["V01"] == 1
    lines = [row | {"file_path": NAME}]
    (same,), _ = read(explained.vqa_e, write_lines(tmp_path / "e.jsonl", lines), COCO_SIZES)
    assert same.turns == dialog.turns


def test_all_justifications_are_references(tmp_path: Path) -> None:
    row = {
        "question": "Is it windy?", "image_id": "7", "image_name": NAME,
        "answers": [{"answer": "yes"}, {"answer": "no"}, {"answer": "yes"}],
        "explanation": ["the kite flies", "hair is blown about."],
    }  # fmt: skip
    (dialog,), _ = read(explained.vqa_x, write(tmp_path / "vqaX_val.json", {"70": row}), COCO_SIZES)
    assert dialog.uid == "vqa_x/val/70/T04"
    assert dialog.turns[0].references == [
        "The kite flies. So the answer is yes.", "Hair is blown about. So the answer is yes.",
    ]  # fmt: skip
    flat = {
        "question": "Is it windy?", "file_path": NAME, "justification": row["explanation"],
        "multiple_choice_answer": "yes", "question_id": 70,
    }  # fmt: skip
    (same,), _ = read(explained.vqa_x, write_lines(tmp_path / "x.jsonl", [flat]), COCO_SIZES)
    assert same.turns == dialog.turns
    with pytest.raises(SourceError, match="another file version"):
        read(explained.vqa_x, write(tmp_path / "vqaX_test.json", "3"), COCO_SIZES)


GQA = {
    "imageId": "a", "question": "Is the kite above the two dogs?", "answer": "yes",
    "fullAnswer": "Yes, the red kite is above the dogs.",
    "annotations": {"answer": {}, "question": {"2": "11"}, "fullAnswer": {"1:3": "11", "6": "12,13"}},
}  # fmt: skip
GRAPH = {"width": 60, "height": 50, "objects": {
    "11": {"name": "kite", "x": 10, "y": 5, "w": 10, "h": 10},
    "12": {"name": "dog", "x": 10, "y": 30, "w": 10, "h": 10},
    "13": {"name": "dog", "x": 30, "y": 30, "w": 10, "h": 10}}}  # fmt: skip


def test_gqa_full_answers_are_grounded_in_the_scene_graph(tmp_path: Path) -> None:
    path = write(tmp_path / "val_balanced_questions.json", {"201": GQA})
    (short, reason), _ = read(gqa.gqa, path, SIZES)
    assert (short.uid, short.turns[0].answer) == ("gqa/val/201/T03", "The answer is yes.")
    assert reason.uid == "gqa/val/201/T04" and reason.task_id == "T04"
    assert reason.turns[0].answer == f"{GQA['fullAnswer']} So the answer is yes."
    write(tmp_path / "val_sceneGraphs.json", {"a": GRAPH})
    (_, _, full), drops = read(gqa.gqa, path, SIZES)
    assert not drops.lines and full.uid == "gqa/val/201/X1"
    assert full.turns[0].answer == "The red kite is above the dogs. So the answer is yes."
    assert phrases(full) == [("red kite", [0]), ("dogs", [1, 2])]
    assert (
        full.regions[0].box == (10, 5, 20, 15)
        and full.turns[0].slots["question"] == GQA["question"]
    )


def test_gqa_words_that_are_not_there(tmp_path: Path) -> None:
    bad = GQA | {"annotations": {"fullAnswer": {"9": "11"}}}
    path = write(tmp_path / "val_balanced_questions.json", {"201": bad, "202": GQA})
    write(tmp_path / "val_sceneGraphs.json", {"a": GRAPH})
    dialogs, drops = read(gqa.gqa, path, SIZES)
    assert len(dialogs) == 3 and dict(drops.counts) == {"V20": 1}
    with pytest.raises(SourceError, match="another file version"):
        read(gqa.gqa, write(tmp_path / "x.json", []), SIZES)
    with pytest.raises(SourceError, match=r"gone\.json: not found"):
        read(gqa.gqa, path, SIZES, scene_graphs=str(tmp_path / "gone.json"))


def test_clevr_questions(tmp_path: Path) -> None:
    row = {
        "question": "Is there a cube?", "answer": "no", "image_filename": "a.jpg",
        "image_index": 3, "question_index": 30, "program": [],
    }  # fmt: skip
    test_row = {k: v for k, v in row.items() if k != "answer"}
    path = write(tmp_path / "CLEVR_val_questions.json", {"questions": [row, test_row]})
    (dialog,), drops = read(clevr.questions, path, SIZES)
    assert dialog.uid == "clevr/val/30/T03" and dialog.provenance["image_id"] == 3
    assert dict(drops.counts) == {"V01": 1}


def solid(size: str, color: str, shape: str, *at: float) -> dict[str, Any]:
    return {
        "size": size,
        "color": color,
        "material": "metal",
        "shape": shape,
        "pixel_coords": [*at, 9],
    }


SCENE = {
    "image_filename": "a.jpg",
    "objects": [solid("large", "red", "cube", 10, 20.5), solid("small", "red", "cube", 40, 30),
                solid("small", "blue", "sphere", 25, 12)],
    "relationships": {"left": [[], [0, 2], [0]], "right": [[1, 2], [], [1]],
                      "front": [[1], [], [0, 1]], "behind": [[2], [0, 2], []]},
}  # fmt: skip


def step(name: str, *inputs: int, value: str = "") -> dict[str, Any]:
    return {"function": name, "inputs": list(inputs), "value_inputs": [value] if value else []}


COUNT = [
    step("scene"), step("filter_color", 0, value="blue"), step("unique", 1),
    step("relate", 2, value="right"), step("filter_shape", 3, value="cube"), step("count", 4),
]  # fmt: skip


def clevr_files(tmp_path: Path, answer: str, program: list[dict[str, Any]], **scene: Any) -> Path:
    row = {
        "question": "How many cubes are right of the blue thing?", "answer": answer,
        "image_filename": "a.jpg", "question_index": 30, "program": program,
    }  # fmt: skip
    write(tmp_path / "scenes/CLEVR_val_scenes.json", {"scenes": [SCENE | scene]})
    return write(tmp_path / "questions/CLEVR_val_questions.json", {"questions": [row]})


def test_clevr_programs_become_reasons_and_points(tmp_path: Path) -> None:
    (_, reason, points), drops = read(clevr.questions, clevr_files(tmp_path, "1", COUNT), SIZES)
    assert not drops.lines and (reason.task_id, points.task_id) == ("T04", "X2")
    text = "There is 1 blue thing. There is 1 cube right of it. So the answer is 1."
    assert reason.turns[0].answer == points.turns[0].answer == text
    assert phrases(points) == [("blue thing", [2]), ("cube right of it", [1])]
    assert points.turns[0].spans[0].unit is Unit.POINT and points.regions[0].point == (10, 20.5)


@pytest.mark.parametrize(
    ("answer", "program", "text"),
    [
        ("no", [step("scene"), step("filter_size", 0, value="small"),
                step("filter_color", 1, value="green"), step("exist", 2)],
         "There are no small green things. So the answer is no."),
        ("3", [step("scene"), step("count", 0)], "There are 3 things. So the answer is 3."),
        ("2", [step("scene"), step("filter_shape", 0, value="sphere"), step("scene"),
               step("filter_size", 2, value="large"), step("union", 3, 1), step("count", 4)],
         "There is 1 sphere. There is 1 large thing. Together there are 2 things. "
         "So the answer is 2."),
        ("sphere", [step("scene"), step("filter_color", 0, value="red"),
                    step("filter_size", 1, value="small"), step("unique", 2),
                    step("same_size", 3), step("unique", 4), step("query_shape", 5)],
         "There is 1 small red thing. There is 1 thing of the same size. "
         "So the answer is sphere."),
        ("yes", [step("scene"), step("filter_color", 0, value="red"), step("count", 1),
                 step("scene"), step("filter_color", 3, value="blue"), step("count", 4),
                 step("greater_than", 2, 5)],
         "There are 2 red things. There is 1 blue thing. So the answer is yes."),
    ],
)  # fmt: skip
def test_clevr_programs_in_words(answer: str, program: list[dict[str, Any]], text: str) -> None:
    assert clevr.explain(program, SCENE)[:2] == (answer, text)


def test_clevr_programs_that_do_not_come_to_the_answer(tmp_path: Path) -> None:
    for answer, program, scene, code in (
        ("2", COUNT, {}, "V10"), ("1", [*COUNT, step("fly", 5)], {}, "V01"),
        ("1", [step("unique", 0)], {}, "V01"), ("1", COUNT, {"objects": SCENE["objects"][:1]}, "V10"),
        ("1", COUNT, {"objects": [*SCENE["objects"][:2], solid("small", "blue", "cube", 99, 3)]}, "V05"),
    ):  # fmt: skip
        dialogs, drops = read(
            clevr.questions, clevr_files(tmp_path, answer, program, **scene), SIZES
        )
        assert [d.task_id for d in dialogs] == ["T03"] and dict(drops.counts) == {code: 1}
    with pytest.raises(SourceError, match=r"gone\.json: not found"):
        read(
            clevr.questions,
            clevr_files(tmp_path, "1", COUNT),
            SIZES,
            scenes=str(tmp_path / "gone.json"),
        )


def v7w(tmp_path: Path, **changes: Any) -> Path:
    boxes = [
        {"box_id": k, "name": "kite", "x": 5 * k, "y": 10, "width": 10, "height": 10}
        for k in range(1, 5)
    ]
    pair = {
        "qa_id": 9, "image_id": 7, "question": "Which kite is red?", "answer": 3,
        "multiple_choices": [1, 2, 4], "type": "which",
    }  # fmt: skip
    image = {"image_id": 7, "filename": "a.jpg", "split": "val", "qa_pairs": [pair | changes]}
    return write(tmp_path / "dataset_v7w_pointing.json", {"images": [image], "boxes": boxes})


def test_visual7w_shows_four_boxes_in_an_order_of_the_question(tmp_path: Path) -> None:
    (dialog,), _ = read(pointing.visual7w, v7w(tmp_path), SIZES)
    turn = dialog.turns[0]
    assert (dialog.task_id, turn.bank) == ("X3", "pointing") and not turn.literal
    assert asked(dialog) == "Which kite is red? Choose among [VPT], [VPT], [VPT], [VPT]."
    assert [(p.region, p.kind) for p in turn.prompts] == [(k, PromptKind.BOX) for k in range(4)]
    ((phrase, (target,)),) = phrases(dialog)
    assert phrase == "target" and dialog.regions[target].box == (15, 10, 25, 20)
    assert sorted(r.box[0] for r in dialog.regions if r.box) == [5, 10, 15, 20]
    first = {
        phrases(read(pointing.visual7w, v7w(tmp_path, qa_id=k), SIZES)[0][0])[0][1][0]
        for k in range(20)
    }
    assert first == {0, 1, 2, 3}


def test_visual7w_boxes_and_splits_that_are_not_there(tmp_path: Path) -> None:
    dialogs, drops = read(pointing.visual7w, v7w(tmp_path, answer=77), SIZES)
    assert not dialogs and dict(drops.counts) == {"V01": 1} and "question 0" in drops.lines[0]
    with pytest.raises(SourceError, match="no split 'testA'"):
        list(pointing.visual7w(v7w(tmp_path), "testA", "", Drops(), SIZES))


LOCAL = {
    "file_path": "a.jpg", "question": "What colour is this?", "answer": "red",
    "bbox": [10, 10, 30, 30], "point": [12.5, 20],
}  # fmt: skip


def test_point_qa_local_asks_about_a_box_or_a_point(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "pointQA_local_val.jsonl", [LOCAL, LOCAL | {"point": [99, 1]}])
    (box, point), drops = read(pointing.point_qa, path, SIZES)
    assert (box.uid, point.uid) == (
        "pointqa_local/val/1-question/T10", "pointqa_local/val/1-question/T11",
    )  # fmt: skip
    assert asked(point) == "What colour is this? [VPT]" and point.task_id == "T11"
    assert point.turns[0].prompts[0].kind is PromptKind.POINT
    assert point.regions[0].point == (12.5, 20) and dict(drops.counts) == {"V05": 1}
    (only,), _ = read(pointing.point_qa, write_lines(path, [LOCAL]), SIZES, kinds="point")
    assert only.uid == point.uid


def test_point_qa_twice_asks_in_three_ways(tmp_path: Path) -> None:
    row = {k: v for k, v in LOCAL.items() if k != "question"} | {
        "obj_question": "How many of these?", "super_question": "How many of these animals?",
        "general_question": "How many dogs?", "answer": 2, "img_w": 60, "img_h": 50,
    }  # fmt: skip
    path = write_lines(tmp_path / "pointQA_twice_val.jsonl", [row])
    dialogs, _ = read(pointing.point_qa, path, {})
    assert len(dialogs) == 6 and dialogs[0].turns[0].answer == "The answer is 2."
    assert {d.provenance["question_kind"] for d in dialogs} == {
        "obj_question", "super_question", "general_question",
    }  # fmt: skip


VCR = {
    "annot_id": "val-0", "img_fn": "film/1.jpg", "metadata_fn": "film/1.json",
    "objects": ["person", "person", "cup"],
    "question": ["Why", "does", [0], "look", "at", [0, 1], "?"],
    "answer_choices": [["No", "."], [[1], "'", "s", "cup", "is", [2], "."]], "answer_label": 1,
    "rationale_choices": [[[0, 1], "share", "it", "."]], "rationale_label": 0,
}  # fmt: skip


def vcr_files(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    boxes = [[1, 1, 20, 40, 0.9], [25, 1, 50, 40, 0.9], [30, 30, 40, 45, 0.8]]
    found = {"boxes": boxes, "width": 60, "height": 50, "names": VCR["objects"], "segms": []}
    write(tmp_path / "vcr1images/film/1.json", found)
    return write_lines(tmp_path / "val.jsonl", list(rows))


def test_vcr_tags_become_prompts_and_phrases(tmp_path: Path) -> None:
    (dialog, steps), drops = read(vcr.vcr, vcr_files(tmp_path, VCR))
    assert not drops.lines and dialog.uid == "vcr/val/val-0/X1"
    assert dialog.image and dialog.image.path == "pics/film/1.jpg"
    turn = dialog.turns[0]
    assert turn.literal == "Why does person1 [VPT] look at person1 and person2 [VPT]?"
    assert [p.region for p in turn.prompts] == [0, 1]
    assert turn.answer == "person2's cup is cup3. person1 and person2 share it."
    assert phrases(dialog) == [("person2", [1]), ("cup3", [2]), ("person1 and person2", [0, 1])]
    assert steps.uid == "vcr/val/val-0/X4" and steps.turns[0].literal == turn.literal
    assert [t.answer for t in steps.turns] == [
        "person2's cup is cup3.", "person1 and person2 share it.",
    ]  # fmt: skip
    assert asked(steps, 1) == "Why do you think so?" and not steps.turns[1].prompts
    assert phrases(steps, 1) == [("person1 and person2", [0, 1])]


def test_vcr_rows_that_are_not_whole(tmp_path: Path) -> None:
    unlabelled = {k: v for k, v in VCR.items() if k != "answer_label"}
    rows = [unlabelled, VCR | {"objects": ["person"]}, VCR | {"question": ["Who", [5], "?"]},
            VCR | {"metadata_fn": "film/2.json"}]  # fmt: skip
    dialogs, drops = read(vcr.vcr, vcr_files(tmp_path, *rows))
    assert not dialogs and dict(drops.counts) == {"V01": 2, "V10": 2}
    plain = VCR | {"answer_choices": [["No", "."]], "answer_label": 0,
                   "rationale_choices": [["It", "is", "dark", "."]]}  # fmt: skip
    (dialog,), _ = read(vcr.vcr, vcr_files(tmp_path, plain))
    assert dialog.uid.endswith("/T10") and dialog.turns[0].answer == "No. It is dark."


def test_sizes_come_from_the_list_or_the_picture(tmp_path: Path) -> None:
    photo(tmp_path / "b.png", 33, 44)
    write(tmp_path / "broken.jpg", json.dumps(0))
    sizes = PictureSizes(tmp_path, {"a.jpg": (60, 50)})
    assert sizes["a.jpg"] == (60, 50) and sizes["b.png"] == (33, 44) and len(sizes) == 1
    assert "gone.jpg" not in sizes and "broken.jpg" not in sizes
