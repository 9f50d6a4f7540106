"""The README's measured tables are those of the result files."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_tables_come_from_the_result_files() -> None:
    module = runpy.run_path(str(ROOT / "benchmarks" / "readme.py"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert module["filled"](text) == text


def test_a_changed_number_is_noticed() -> None:
    module = runpy.run_path(str(ROOT / "benchmarks" / "readme.py"))
    text = "<!-- table quickstart -->\n| 1 |\n<!-- end quickstart -->"
    assert module["filled"](text) != text
