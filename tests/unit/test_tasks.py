"""Task types: every one has a command, a bank of questions, a scorer and a source that gives it."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines import templates
from data_pipelines.build import FAMILIES, build, shapes_all_recipe
from data_pipelines.encode import EncodeOptions, encode_row
from data_pipelines.shapes_world import generate
from data_pipelines.shapes_world.formats import write_formats
from data_pipelines.shards import DialogStore, read_manifest
from data_pipelines.task_table import FAMILY_TASKS, task_rows
from data_pipelines.tasks import TASKS
from data_pipelines.tokenizer import load_tokenizer
from refvlm_jax.batch import Batch, BatchSpec
from refvlm_jax.cli.data_setup import encode_options
from refvlm_jax.cli.main import main
from refvlm_jax.cli.run import build_model, task_of
from refvlm_jax.config.resolve import resolve, to_dict
from refvlm_jax.eval.tasks import TASKS as SCORERS
from refvlm_jax.testing.tiny import tiny_config
from refvlm_jax.train.loop import fit
from refvlm_jax.trp.commands import COMMANDS
from refvlm_jax.trp.prompt import clean_question
from refvlm_jax.trp.spans import check_free_text
from refvlm_jax.trp.tokens import IGNORE_ID, PROMPT_SLOT, Unit

SLOTS = {
    "rec": ["expr"], "res": ["expr"], "cond_det": ["expr"], "cond_seg": ["expr"],
    "vqa": ["question"], "vqa_reason": ["question"], "vqa_box": ["question"],
    "vqa_point": ["question"], "region_vqa": ["question", "region"],
    "pointing": ["question", "regions"],
    "region_cap": ["region"], "region_detail": ["region"], "region_det": ["region"],
    "region_seg": ["region"], "region_keypoints": ["region"],
}  # fmt: skip
"""Slots of every template of a bank; other banks have none."""
IN_NUMBERS = re.compile(
    r"coordinate|number|numeric|corner|x and y|write|copy|state|as text|left, top"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tasks")
    generate(root / "world", level=1, scenes={"train": 8}, seed=3, workers=1, progress=False)
    write_formats(root / "world", "train")
    report = build(shapes_all_recipe(root / "world", "train"), root / "out", progress=False)
    assert not report.dropped
    return root / "out"


def test_there_are_twenty_five_task_types_and_four_more_forms() -> None:
    numbered = [f"T{k:02d}" for k in range(1, 26)] + ["X1", "X2", "X3", "X4"]
    assert list(TASKS) == numbered and set(SCORERS) == set(numbered)
    assert {task.bank for task in TASKS.values() if task.bank} == set(templates.banks())
    for task in TASKS.values():
        # No decoder reads points, so X2 keeps its command's own unit free.
        assert task.unit in (COMMANDS[task.command].unit, Unit.POINT), task.id
        wanted = "" if task.unit in (Unit.NONE, Unit.POINT) else task.unit.text
        assert SCORERS[task.id].unit == wanted, task.id


@pytest.mark.parametrize("bank", templates.banks())
@pytest.mark.parametrize("register", templates.REGISTERS)
def test_banks_are_wide_and_sound(bank: str, register: str) -> None:
    found = templates.sentences(bank, register)
    assert len(found) >= 40 and len({text.lower() for text in found}) == len(found)
    for text in found:
        assert sorted(re.findall(r"\{(\w+)\}", text)) == SLOTS.get(bank, []), text
        check_free_text(text, "template")
        assert (clean_question(text) == text and text[0] != text[0].lower()) or text[0] == "{"
        assert len(text) <= 80 and text.isascii(), text


def test_registers_ask_for_what_they_get() -> None:
    for bank in templates.banks():
        own = templates.sentences(bank, "coord")
        for text in templates.sentences(bank, "ref"):
            assert not re.search(r"coordinate|\bnumbers?\b", text), text
        if own != templates.sentences(bank, "ref"):
            assert all(IN_NUMBERS.search(text.lower()) for text in own), bank


def test_shown_regions_are_listed() -> None:
    slots = {"question": "Which {x}?"}
    assert templates.render("pointing", slots, regions=3) == (
        f"Which {{x}}? Choose among {PROMPT_SLOT}, {PROMPT_SLOT}, {PROMPT_SLOT}."
    )
    assert templates.render("region_vqa", slots, regions=1) == f"Which {{x}}? {PROMPT_SLOT}"


def test_a_limit_keeps_the_first_templates() -> None:
    rng = np.random.default_rng(0)
    drawn = {templates.render("det", {}, rng=rng, limit=3) for _ in range(60)}
    assert drawn == set(templates.sentences("det")[:3])
    assert len({templates.render("det", {}, rng=rng, limit=99) for _ in range(600)}) == 42


def test_families_give_what_they_are_listed_with(built: Path) -> None:
    assert FAMILY_TASKS.keys() == FAMILIES.keys()
    assert {task for tasks in FAMILY_TASKS.values() for task in tasks} == set(TASKS)
    given = defaultdict(set)
    store = DialogStore(built)
    family_of = {"coco": "coco_instances", "flickr30k": "flickr_boxes", "shapes_vqa": "vqa"}
    for k in range(len(store)):
        dialog = store[k]
        source = dialog.source.removesuffix("_local").replace("pointqa", "point_qa")
        given[family_of.get(source, source)].add(dialog.task_id)
    for family, tasks in given.items():
        if family in FAMILY_TASKS:
            assert tasks <= set(FAMILY_TASKS[family]), family
    assert given["gqa"] == {"T03", "T04", "X1"} and given["clevr"] == {"T03", "T04", "X2"}
    assert given["grit"] == set(FAMILY_TASKS["grit"])
    assert given["grand"] == set(FAMILY_TASKS["grand"]) and len(given) >= 12


def test_a_world_in_all_formats_has_every_task(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = task_rows(built)
    assert all(row.count for row in rows) and len(rows) == 29
    assert sum(row.count or 0 for row in rows) == len(DialogStore(built))
    assert main(["data", "tasks", "--built", str(built)]) == 0
    shown = capsys.readouterr().out
    assert "region keypoints" in shown and "dialogues" in shown
    (line,) = (line for line in shown.splitlines() if " T22 " in line)
    assert "point or box or scribble or mask" in line and "interactive_single" in line
    assert main(["data", "tasks"]) == 0 and "dialogues" not in capsys.readouterr().out


@pytest.mark.parametrize("register", templates.REGISTERS)
def test_every_task_becomes_a_row(built: Path, register: str) -> None:
    spec = BatchSpec(
        seq_len=1536, image_tokens=4, prompts=16, refs=40, mask_refs=20, kpt_refs=4,
        depth_refs=1, mask_size=16, depth_size=16, image_size=32,
    )  # fmt: skip
    tokenizer, store = load_tokenizer(), DialogStore(built)
    root = Path(read_manifest(built)["image_root"])
    options = EncodeOptions(spec=spec, register=register)  # type: ignore[arg-type]
    left = set(TASKS) - ({"T25"} if register == "coord" else set())  # depth is no coordinates
    for dialog in (store[k] for k in range(len(store))):
        if dialog.task_id not in left:
            continue
        left.remove(dialog.task_id)
        row = encode_row([dialog], root, tokenizer, options, np.random.default_rng(0))
        assert (row["labels"] != IGNORE_ID).sum() >= 2  # a word and the end
        refs = sum(len(s.targets) for t in dialog.turns for s in t.spans)
        assert row["ref_valid"].sum() == (refs if register == "ref" else 0), dialog.uid
    assert not left


@pytest.mark.slow(1)
def test_every_task_trains_in_one_program(built: Path, tmp_path: Path) -> None:
    """After two steps of warm-up, batches of all tasks compile nothing at all."""
    compiled: list[str] = []

    def listen(event: str, seconds: float, **fields: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    tokenizer, store = load_tokenizer(), DialogStore(built)
    model = tiny_config()
    assert model.keypoint is not None
    model = replace(
        model,
        llama=replace(model.llama, vocab_size=tokenizer.vocab_size, layers=1, remat="none"),
        keypoint=replace(model.keypoint, sigmas=(0.1,) * 17),
    )
    first = {dialog.task_id: dialog for dialog in (store[k] for k in range(len(store)))}
    assert set(first) == set(TASKS)
    slots = {"seq_len": 1536, "prompts": 16, "refs": 40, "mask_refs": 20, "mask_size": 16}
    config = resolve(
        {
            "name": "tasks",
            "model": to_dict(model),
            "data": {"batch_size": 1, **slots, "kpt_refs": 4, "depth_refs": 1, "depth_size": 16},
            "train": {"steps": len(first) + 1, "nonfinite": "skip"},
            "ckpt": {"every_steps": 1000},
        }
    )
    root = Path(read_manifest(built)["image_root"])
    after: list[int] = []

    def loader(start: int) -> Iterator[Batch]:
        for dialog in (*first.values(), first["T01"]):
            options = encode_options(config)
            row = encode_row([dialog], root, tokenizer, options, np.random.default_rng(0))
            row["sample_id"] = np.asarray(0, np.int32)
            after.append(len(compiled))
            yield Batch.from_dict({name: value[None] for name, value in row.items()})

    result = fit(config, task_of(config), partial(build_model, config), loader, tmp_path)
    assert result.metrics["skipped_updates"] == 0
    assert len(after) == len(TASKS) + 1 and after[1] > 0
    assert after[2:] == [after[2]] * (len(after) - 2)


def test_the_formats_are_written_once(tmp_path: Path) -> None:
    generate(tmp_path, level=1, scenes={"val": 2}, seed=1, workers=1, progress=False)
    folder = write_formats(tmp_path, "val")
    stamp = folder.stat().st_mtime_ns
    assert write_formats(tmp_path, "val") == folder and folder.stat().st_mtime_ns == stamp
    assert [path.name for path in (tmp_path / "native").iterdir()] == ["val"]
