"""`refvlm plan --config RECIPE --pod v5e-64 [a.b=3 ...]`: does a run fit hardware, and how fast is it?

Nothing of the described hardware is needed: its compiler runs here, on shapes only.
"""

import argparse
import json
import logging
import shlex
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from refvlm_jax.config.errors import ConfigError
from refvlm_jax.config.resolve import load_config
from refvlm_jax.config.schema import RunConfig
from refvlm_jax.plan.pods import Pod, parse_pod
from refvlm_jax.plan.worker import make_plan

_PODS = "v5e-64, v5p-64, v6e-64, v4-128, v5p-64x2 (two slices), h100-8x8 (nodes x GPUs), cpu-8"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument("--config", required=True, help="a Python file with get_config()")
    parser.add_argument("--pod", required=True, help=f"hardware by name: {_PODS}")
    parser.add_argument("--json", action="store_true", help="print the whole plan as JSON")
    parser.add_argument(
        "--analytic", action="store_true", help="estimate from shapes alone, without a compiler"
    )
    parser.add_argument(
        "--search", action="store_true", help="look for a faster mesh, accumulation and remat"
    )
    parser.add_argument(
        "--phase",
        default="train",
        choices=("train", "prefill", "decode"),
        help="a training step, reading prompts, or writing a token",
    )
    parser.add_argument(
        "--strict", action="store_true", help="warnings about the sharding fail the command too"
    )
    parser.add_argument("--verbose", action="store_true", help="show what the compiler says")
    parser.add_argument("overrides", nargs="*", help="dotted.field=value")


def run(args: argparse.Namespace) -> int:
    """Prints a plan; 0 when the run fits, 1 when it does not or is badly sharded (`--strict`)."""
    config, pod = load_config(args.config, args.overrides), parse_pod(args.pod)
    if args.search and args.phase != "train":
        raise ConfigError("--search looks for a training step; leave --phase out")
    if args.search:
        found = search_plan(config, pod, analytic=args.analytic, verbose=args.verbose)
    else:
        found = make_plan(
            config, pod, analytic=args.analytic, phase=args.phase, verbose=args.verbose
        )
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        show(found, Console())
    return 0 if found["fits"] and not (args.strict and found["warnings"]) else 1


def search_plan(
    config: RunConfig, pod: Pod, *, analytic: bool = False, verbose: bool = False
) -> dict[str, Any]:
    """The plan of the best variant that a search finds, with its `patch` and what was `tried`.

    Args:
      config: the recipe.
      pod: what it should fit.
      analytic: compiles nothing.
      verbose: passes on what the compiler says.

    Raises:
      ConfigError: no variant fits.
    """
    import jax

    from refvlm_jax.plan.report import plan
    from refvlm_jax.plan.search import patch_of, search

    jax.config.update("jax_platforms", "cpu")  # estimates are made here, on shapes
    # Candidates need not divide evenly; the plans tell what it costs.
    logging.getLogger("refvlm_jax.mesh").setLevel(logging.ERROR)
    console = Console(stderr=True)

    def planner(candidate: RunConfig, estimate: bool) -> dict[str, Any]:
        quick = estimate or analytic
        doing = (
            f"{'estimating' if quick else 'compiling'} {as_arguments(patch_of(config, candidate))}"
        )
        with console.status(doing):
            if quick:
                return plan(candidate, pod, analytic=True)
            return make_plan(candidate, pod, verbose=verbose)

    choice = search(config, pod, planner)
    return {**choice.plan, "patch": choice.patch, "tried": [asdict(t) for t in choice.tried]}


def show(found: dict[str, Any], console: Console) -> None:
    """Prints a plan for people."""
    console.print(f"[bold]{found['config']}[/] on {found['pod']}: {found['layout']}")
    console.print(f"[bold]{found['verdict']}[/] ({found['method']})", soft_wrap=True)
    for warning in found["warnings"]:
        console.print(f"[yellow]warning:[/] {warning}", soft_wrap=True)
    if "patch" in found:
        console.print(_trials(found["tried"]))
        console.print(f"patch: {as_arguments(found['patch'])}", soft_wrap=True)
    console.print(_values("memory a device", found["memory"]))
    console.print(_tensors(found["largest"]))
    console.print(_values("products a step and device", found["flops"]))
    if found["collectives"]:
        console.print(_collectives(found["collectives"]))
    for title in ("time", "data", "cost"):
        if found[title]:
            console.print(_values(title, found[title]))


def as_arguments(patch: dict[str, Any]) -> str:
    """A patch as arguments of a command line."""
    fields = (shlex.quote(f"{name}={value}") for name, value in patch.items())
    return " ".join(fields) or "none, the recipe as it is"


def _trials(trials: list[dict[str, Any]]) -> Table:
    table = Table("patch", "verdict", "step", title="tried", title_justify="left")
    for trial in trials:
        step = "" if trial["seconds"] is None else _readable(trial["seconds"], "s")
        table.add_row(as_arguments(trial["patch"]), trial["verdict"].split(";")[0], step)
    return table


def _values(title: str, section: dict[str, Any]) -> Table:
    table = Table("", "", "how", title=title, title_justify="left")
    for name, entry in section.items():
        if isinstance(entry, dict) and "value" in entry:
            table.add_row(name, _readable(entry["value"], entry["unit"]), entry["how"])
    return table


def _tensors(tensors: list[dict[str, Any]]) -> Table:
    table = Table("size", "array", "made in", title="largest tensors", title_justify="left")
    for tensor in tensors:
        array = f"{tensor['dtype']}{tensor['shape']}"
        table.add_row(_readable(tensor["bytes"], "bytes"), array, tensor["scope"] or "the step")
    return table


def _collectives(section: dict[str, Any]) -> Table:
    table = Table("op", "axes", "count", "moved", title="collectives a step", title_justify="left")
    for op in section["ops"]:
        axes = "+".join(op["axes"]) or "-"
        table.add_row(op["op"], axes, str(op["count"]), _readable(op["moved_bytes"], "bytes"))
    return table


def _readable(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 2**30:.3f} GiB"
    if unit.startswith("FLOP"):
        return f"{value / 1e12:.2f} T{unit}"
    return f"{value:,.4g} {unit}".strip()
