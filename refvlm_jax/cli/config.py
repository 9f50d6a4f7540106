"""`refvlm config RECIPE [a.b=3 ...]`: prints the resolved configuration of a recipe."""

import argparse
import json

from refvlm_jax.config.resolve import load_config, to_dict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument("recipe", help="a Python file with get_config()")
    parser.add_argument("overrides", nargs="*", help="dotted.field=value")


def run(args: argparse.Namespace) -> int:
    """Prints every field, defaults included, as JSON."""
    print(json.dumps(to_dict(load_config(args.recipe, args.overrides)), indent=2))
    return 0
