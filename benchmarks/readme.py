"""Writes the measured tables of README.md from the result files in `benchmarks/results`.

    python benchmarks/readme.py [--check]

Every table stands between `<!-- table NAME -->` and `<!-- end NAME -->`; `--check` changes nothing and
fails when a table differs from its result file. Numbers reach the README in no other way.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
HEADLINE = {
    "rec_acc50": "REC, accuracy at IoU 0.5",
    "res_ciou": "RES, cumulative IoU",
    "det_ap50": "detection, AP50",
    "vqa_acc": "VQA, exact match",
    "format_valid": "answers in valid format",
    "rec_acc50_heldout_combos": "REC on unseen shape-colour pairs",
    "keypoint_ap": "keypoints, OKS AP",
    "keypoint_pck": "keypoints, PCK at 0.1",
    "depth_abs_rel": "depth, absolute relative error (low is good)",
    "depth_delta1": "depth, delta1",
}
Row = Sequence[str]


def markdown(head: Row, rows: Sequence[Row]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None) -> str:
    """Three decimals, or empty where nothing was measured."""
    return "" if value is None else f"{value:.3f}"


def quickstart(result: dict[str, Any]) -> str:
    """Headline metrics of a run beside what trivial and untrained answers score."""
    rows = [
        [
            HEADLINE[key],
            number(result[key]),
            number(result["baselines"][key].get("untrained")),
            number(result["baselines"][key].get("trivial")),
            result["baselines"][key].get("what", ""),
        ]
        for key in HEADLINE
        if key in result  # only recipes with these decoders have the last ones
    ]
    minutes = f"{result['train_seconds'] / 60:.1f}"
    where = result.get("trained_on", "two CPU cores")
    rows.append([f"minutes of training, {where}", minutes, "", "", ""])
    return markdown(["metric", "value", "untrained", "trivial", "trivial answer"], rows)


def ablations(result: dict[str, Any]) -> str:
    """One row a recipe."""
    keys = list(next(iter(result.values())))
    return markdown(
        ["recipe", *keys],
        [[name, *(number(values.get(k)) for k in keys)] for name, values in result.items()],
    )


def train_step(result: dict[str, Any]) -> str:
    """Step time of both implementations."""
    seconds, samples = result["seconds_a_step"], result["samples_a_second"]
    rows = [
        [name, f"{seconds[key]:.3f}", f"{samples[key]:.1f}", str(result["parameters"][key])]
        for name, key in (("this library (JAX)", "jax"), ("plain PyTorch", "torch"))
    ]
    table = markdown(["implementation", "seconds a step", "samples a second", "parameters"], rows)
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    ratio = f"PyTorch time / JAX time: **{result['torch_over_jax']:.2f}**"
    return f"{table}\n\n{ratio} ({result['rows']} rows a step; {versions}; {result['date']})."


def convert_roundtrip(result: dict[str, Any]) -> str:
    """Seconds, rate and memory of each step of a conversion there and back."""
    rows = [
        [
            what,
            f"{result[step]['seconds']:.0f}",
            f"{result[step]['gb_per_second']:.2f}",
            f"{result[step]['peak_bytes'] / 2**30:.2f}",
        ]
        for step, what in (
            ("import", "PyTorch to Orbax"),
            ("export", "Orbax to PyTorch"),
            ("import_again", "the export to Orbax again"),
        )
    ]
    table = markdown(["step", "seconds", "GB a second", "peak memory, GiB"], rows)
    outcome = "equal bit for bit" if result["bit_identical"] else "**not** equal"
    largest = result["largest_stacked_bytes"] / 2**30
    return (
        f"{table}\n\n{result['bytes'] / 1e9:.1f} GB; the largest stacked tensor has {largest:.2f} GiB. "
        f"Every tensor of both folders and both checkpoints is {outcome}. Plain bytes go to the same "
        f"disk at {result['disk_gb_per_second']:.2f} GB a second."
    )


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "quickstart": quickstart,
    "quickstart_small": quickstart,
    "quickstart_pose": quickstart,
    "ablations": ablations,
    "train_step": train_step,
    "convert_roundtrip": convert_roundtrip,
}


def filled(text: str) -> str:
    """The README with every table rendered from its result file."""

    def table(match: re.Match[str]) -> str:
        name = match[1]
        result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        return f"<!-- table {name} -->\n{TABLES[name](result)}\n<!-- end {name} -->"

    return re.sub(r"<!-- table (\w+) -->\n.*?<!-- end \1 -->", table, text, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare")
    args = parser.parse_args()
    path = ROOT / "README.md"
    old = path.read_text(encoding="utf-8")
    new = filled(old)
    if args.check:
        if old != new:
            print("README.md differs from benchmarks/results; run benchmarks/readme.py")
        return int(old != new)
    path.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
