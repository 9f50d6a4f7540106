"""`refvlm doctor [--config C] [--workdir DIR] [--json]`: checks this machine before a run."""

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument("--config", help="a recipe whose mesh must fit the devices")
    parser.add_argument("--workdir", type=Path, default=Path("."), help="where checkpoints will go")
    parser.add_argument("--skip-self-test", action="store_true", help="compute nothing")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("overrides", nargs="*", help="dotted.field=value")


def run(args: argparse.Namespace) -> int:
    """Prints one line a check; 0 when nothing failed, 1 otherwise."""
    from rich.console import Console
    from rich.markup import escape

    from refvlm_jax.config.resolve import load_config
    from refvlm_jax.health import State, examine

    config = load_config(args.config, args.overrides) if args.config else None
    findings = []
    console = Console(highlight=False, soft_wrap=True)
    colours = {State.OK: "green", State.WARN: "yellow", State.FAIL: "red"}
    for finding in examine(config, args.workdir, self_test=not args.skip_self_test):
        findings.append(finding)
        if args.json:
            continue
        label = f"[{colours[finding.state]}]{finding.state.value:4}[/]"
        console.print(f"{label} {finding.check}: {escape(finding.found)}")
        if finding.remedy:
            console.print(f"     -> {escape(finding.remedy)}")
    if args.json:
        rows = [{**vars(finding), "state": finding.state.value} for finding in findings]
        print(json.dumps(rows, indent=2))
    return int(any(finding.state is State.FAIL for finding in findings))
