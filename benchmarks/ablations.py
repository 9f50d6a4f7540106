"""Collects the scores of `launch/ablations.sh` into one table: a row a recipe.

python benchmarks/ablations.py RUN [--out FILE]
"""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

# Column -> split, task and metric.
COLUMNS = {
    "rec_acc50": ("val", "T17", "acc50"),
    "rec_acc50_heldout_combos": ("val_combos", "T17", "acc50"),
    "vqa_acc": ("val", "T03", "accuracy"),
    "format_valid": ("val", "all", "format_valid"),
}


def of_quickstart(run: Path) -> dict[str, float]:
    """The columns from a quickstart's metrics.json."""
    splits = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["splits"]
    return {name: splits[split][task][metric] for name, (split, task, metric) in COLUMNS.items()}


def of_ablation(work: Path) -> dict[str, float]:
    """The columns from the score files of an evaluated run."""
    values = {}
    for name, (split, task, metric) in COLUMNS.items():
        path = work / "eval" / split / f"{task}.json"
        values[name] = json.loads(path.read_text(encoding="utf-8"))["metrics"][metric]
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the quickstart")
    parser.add_argument("--out", type=Path, help="write the result as JSON too")
    args = parser.parse_args()
    rows = {"plan block, `<REF>` (quickstart)": of_quickstart(args.run)}
    names = {"no plan block": "shapes_no_plan", "coordinates as text": "shapes_coord"}
    for title, recipe in names.items():
        rows[title] = of_ablation(args.run / "ablations" / recipe)
    table = Table("recipe", *COLUMNS)
    for title, values in rows.items():
        table.add_row(title, *(f"{values[name]:.3f}" for name in COLUMNS))
    Console().print(table)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
