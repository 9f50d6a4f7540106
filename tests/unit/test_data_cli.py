"""`refvlm data` on a small world: build with its report, doctor, inspect."""

import json
import re
import shutil
from pathlib import Path

import pytest

from data_pipelines import build_report
from data_pipelines.build_report import CODES
from data_pipelines.doctor import examine
from data_pipelines.shapes_world import generate
from data_pipelines.shards import DialogStore, read_manifest
from data_pipelines.tokenizer import load_tokenizer
from refvlm_jax.cli.data_html import tokens_html
from refvlm_jax.cli.main import main


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    generate(folder / "world", level=1, scenes={"train": 6}, seed=3, workers=1, progress=False)
    command = ["data", "build", "--recipe", "shapes", "--root", str(folder / "world")]
    assert main([*command, "--out", str(folder / "out"), "--workers", "1"]) == 0
    return folder / "out"


def test_the_page_of_a_build_shows_every_task(built: Path) -> None:
    page = (built / "build_report.html").read_text()
    counts = read_manifest(built)["counts"]
    for task in counts:
        assert f"<h3>{task} " in page, task
    assert (
        page.count("<article")
        == page.count('<svg class="picture"')
        == sum(min(3, number) for number in counts.values())
    )
    assert "http" not in re.sub(r"http://www\.w3\.org", "", page)
    assert all(f"V{k:02d}" in page for k in range(1, 26))


def test_every_rule_of_the_report_is_checked_somewhere() -> None:
    folder = Path(build_report.__file__).parent
    files = [p for p in folder.rglob("*.py") if p.name != "build_report.py"]
    code = "".join(p.read_text() for p in files)
    raised = {c for c in CODES if f'"{c}"' in code} | {"V23"}  # V23 is counted by the report
    assert set(CODES) == raised


def test_a_sound_dataset(built: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["data", "doctor", str(built), "--sample", "40"]) == 0
    assert "bad" not in capsys.readouterr().out
    checks = list(examine(built, load_tokenizer(), sample=10**6))
    assert all(c.ok for c in checks) and checks[-1].looked_at == len(DialogStore(built))


def problems(folder: Path) -> dict[str, list[str]]:
    return {c.name: c.problems for c in examine(folder, load_tokenizer(), sample=300) if not c.ok}


@pytest.fixture()
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy"))


def edit(folder: Path, change) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    change(content)
    (folder / "manifest.json").write_text(json.dumps(content))


def test_a_damaged_shard_is_found(copy: Path) -> None:
    path = copy / "dialog-vqa-00000-of-00001.array_record"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (message,) = problems(copy)["checksums"]
    assert path.name in message and main(["data", "doctor", str(copy)]) == 1


def test_wrong_counts_are_found(copy: Path) -> None:
    edit(copy, lambda content: content["counts"].update(T13=1))
    found = problems(copy)
    assert set(found) == {"counts", "tasks"} and "T13: 6 records" in found["tasks"][0]
    edit(copy, lambda content: content["stores"]["dialog-vqa"][0].update(records=9999))
    assert "the manifest says 9999" in problems(copy)["record counts of shards"][0]


def test_missing_pictures_are_found(copy: Path, tmp_path: Path) -> None:
    edit(copy, lambda content: content.update(image_root=str(tmp_path)))
    assert set(problems(copy)) == {"pictures", "rows"}
    assert problems(tmp_path / "nowhere")["manifest"]


def test_a_page_of_records(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shard = built / "dialog-expressions-00000-of-00001.array_record"
    page = tmp_path / "page.html"
    assert main(["data", "inspect", str(shard), "--html", str(page), "--limit", "4"]) == 0
    text = page.read_text()
    assert text.count("<article") == 4 and text.count("picture x576") == 4
    assert "uid" in text and "expressions" in capsys.readouterr().out + str(shard)
    assert main(["data", "inspect", str(shard), "--limit", "1"]) == 0
    assert "T17" in capsys.readouterr().out
    assert main(["data", "inspect", str(built / "x.array_record")]) == 2


def test_the_loss_mask_covers_the_answer_alone(built: Path) -> None:
    store = DialogStore(built)
    index = next(k for k in range(len(store)) if store[k].task_id == "T13")
    html = tokens_html(store[index], Path(read_manifest(built)["image_root"]), load_tokenizer())
    pieces = re.findall(r'<span class="(t|t loss)">(.*?)</span>', html)
    learned = "".join(text for kind, text in pieces if kind == "t loss")
    given = "".join(text for kind, text in pieces if kind == "t")
    assert "REF" in learned and "USER:" in given and "USER:" not in learned
    last = [kind for kind, _ in pieces]
    assert last == sorted(last), "the answer follows the question"
