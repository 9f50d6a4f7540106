"""`refvlm convert {verify}`: PyTorch weights in and out, and proof that they are the same."""

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    commands = parser.add_subparsers(dest="convert_command", required=True)
    verify = commands.add_parser("verify", help="compare with recorded PyTorch numbers")
    verify.add_argument("bundle", type=Path, help="prefix of a golden bundle")
    verify.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Dispatches to the sub-command."""
    return {"verify": _verify}[args.convert_command](args)


def _verify(args: argparse.Namespace) -> int:
    """Prints every compared tensor; 1 if one of them fails."""
    from refvlm_jax.ckpt.convert.verify.compare import report, table
    from refvlm_jax.ckpt.convert.verify.golden import verify_bundle

    entries = verify_bundle(args.bundle)
    found = report(args.bundle.name, entries)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        print(table(entries))
        failed = len(found["failed"])
        print(f"{found['compared']} tensors compared, {failed or 'none'} failed")
    return 0 if found["passed"] else 1
