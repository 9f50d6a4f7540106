"""Makes the plans under docs/plans and the tables of docs/plan.md from them.

    python benchmarks/plan_tables.py --make [--compile | --search] [--recipes ...] [--pods ...]
    python benchmarks/plan_tables.py [--check]

`--make` plans each recipe on each pod, analytically or with `--compile` by its own compiler; with
`--search` it looks for the best variant. Without it, the tables between `<!-- table NAME -->` and
`<!-- end NAME -->` are written from the plans that are there; `--check` only compares. Numbers reach
the page in no other way.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from refvlm_jax.cli.plan import as_arguments, search_plan
from refvlm_jax.config.resolve import load_config
from refvlm_jax.plan.analytic import Estimate, estimate
from refvlm_jax.plan.pods import parse_pod
from refvlm_jax.plan.report import plan
from refvlm_jax.plan.worker import make_plan

ROOT = Path(__file__).resolve().parent.parent
PLANS, PAGE = ROOT / "docs" / "plans", ROOT / "docs" / "plan.md"
PODS = ("v5e-64", "v5p-64", "v6e-64", "v4-128", "h100-8x8")
VARIANTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "frozen": ("frozen towers", "stage2_vicuna7b", ()),
    "lora": ("LoRA", "stage2_lora_vicuna7b", ()),
    "full": ("everything trained", "stage2_vicuna7b", ("optim.groups=[]",)),
}
"""Name -> title, recipe, overrides."""
GIB = 2**30


def make(variants: list[str], pods: list[str], method: str) -> None:
    for variant in variants:
        _, recipe, overrides = VARIANTS[variant]
        config = load_config(ROOT / "configs" / f"{recipe}.py", overrides)
        guesses: dict[int, Estimate] = {}
        for pod in map(parse_pod, pods):
            if method == "compiled":
                found = make_plan(config, pod)
            elif method == "search":
                found = search_plan(config, pod)
            else:
                # Pods of equally many devices share the estimate.
                guess = guesses.get(pod.devices) or estimate(config, pod.devices)
                guesses[pod.devices] = guess
                found = plan(config, pod, analytic=True, guess=guess)
            path = PLANS / f"{variant}_{pod.name}_{method}.json"
            PLANS.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(f"{path.name}: {found['verdict'][:90]}", flush=True)


def plans() -> dict[tuple[str, str, str], dict[str, Any]]:
    """(variant, pod, method) -> plan."""
    found = {}
    for path in sorted(PLANS.glob("*.json")):
        variant, pod, method = path.stem.split("_")
        found[variant, pod, method] = json.loads(path.read_text(encoding="utf-8"))
    return found


def markdown(head: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return "None is stored yet."
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def memory_table(found: dict[tuple[str, str, str], dict[str, Any]]) -> str:
    head = ["pod", "what is trained", "method", "state", "activations", "peak", "of", "fits"]
    rows = []
    for pod in PODS:
        for variant, (title, _, _) in VARIANTS.items():
            for method in ("compiled", "analytic"):
                if (made := found.get((variant, pod, method))) is None:
                    continue
                memory = made["memory"]
                state = sum(memory[k]["value"] for k in ("params", "frozen", "optimizer", "batch"))
                sizes = (state, *(memory[k]["value"] for k in ("activations", "peak", "capacity")))
                numbers = [f"{size / GIB:.2f}" for size in sizes]
                rows.append([pod, title, method, *numbers, "yes" if made["fits"] else "no"])
    return markdown(head, rows)


def time_table(found: dict[tuple[str, str, str], dict[str, Any]]) -> str:
    head = [
        "pod", "what is trained", "compute", "memory", "links", "network", "step at least",
        "MFU at most", "MFU without overlap", "days at least",
    ]  # fmt: skip
    rows = []
    for (variant, pod, method), made in sorted(found.items(), key=lambda i: PODS.index(i[0][1])):
        if method != "compiled" or not made["time"]:
            continue
        time = {name: entry["value"] for name, entry in made["time"].items()}
        seconds = [
            f"{time[name]:.2f} s"
            for name in ("compute", "memory", "links", "network", "step_bound")
        ]
        shares = [f"{100 * time[name]:.0f}%" for name in ("mfu_bound", "mfu_serial")]
        days = f"{made['data']['days_bound']['value']:.1f}"
        rows.append([pod, VARIANTS[variant][0], *seconds, *shares, days])
    return markdown(head, rows)


def cost_table(found: dict[tuple[str, str, str], dict[str, Any]]) -> str:
    head = ["pod", "what is trained", "wall time", "processor time", "host memory"]
    rows = []
    for (variant, pod, method), made in sorted(found.items(), key=lambda i: PODS.index(i[0][1])):
        if method != "compiled":
            continue
        cost = {name: entry["value"] for name, entry in made["cost"].items()}
        rows.append(
            [
                pod, VARIANTS[variant][0], f"{cost['wall']:.0f} s", f"{cost['cpu']:.0f} s",
                f"{cost['host_memory'] / GIB:.2f} GiB",
            ]
        )  # fmt: skip
    return markdown(head, rows)


def search_table(found: dict[tuple[str, str, str], dict[str, Any]]) -> str:
    head = ["pod", "what is trained", "patch", "peak", "step without overlap", "chosen"]
    rows = []
    for (variant, pod, method), made in sorted(found.items(), key=lambda i: PODS.index(i[0][1])):
        for trial in made["tried"] if method == "search" else ():
            patch = f"`{as_arguments(trial['patch'])}`" if trial["patch"] else "as it is"
            chosen = "yes" if trial["patch"] == made["patch"] else ""
            step = "" if trial["seconds"] is None else f"{trial['seconds']:.2f} s"
            rows.append([pod, VARIANTS[variant][0], patch, trial["verdict"], step, chosen])
    return markdown(head, rows)


def written(text: str, tables: dict[str, str]) -> str:
    for name, table in tables.items():
        mark = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if not mark.search(text):
            raise SystemExit(f"error: {PAGE} has no place for the table {name}")
        text = mark.sub(lambda m, table=table: f"{m[1]}{table}\n{m[2]}", text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--make", action="store_true")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--compile", dest="method", action="store_const", const="compiled")
    how.add_argument("--search", dest="method", action="store_const", const="search")
    parser.add_argument("--recipes", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--pods", nargs="+", default=list(PODS))
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.make:
        make(args.recipes, args.pods, args.method or "analytic")
        return
    found = plans()
    tables = {
        "memory": memory_table(found),
        "time": time_table(found),
        "cost": cost_table(found),
        "search": search_table(found),
    }
    text = PAGE.read_text(encoding="utf-8")
    new = written(text, tables)
    if args.check and new != text:
        sys.exit(f"{PAGE} differs from the plans; run python benchmarks/plan_tables.py")
    if not args.check:
        PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
