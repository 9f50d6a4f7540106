"""Entry point of `refvlm`: parses the command line and hands over to one module a command."""

import argparse
import errno
import importlib
import sys
from collections.abc import Sequence

# Command -> module with `add_arguments(parser)` and `run(args) -> int`. Imported on use, so that
# `refvlm --help` and `refvlm data` never start JAX.
COMMANDS = {
    "quickstart": ("refvlm_jax.cli.quickstart", "data, training, evaluation and report in one go"),
    "data": ("refvlm_jax.cli.data", "render the shapes world, build and inspect shards"),
    "train": ("refvlm_jax.cli.train", "train a recipe; resumes by itself"),
    "eval": ("refvlm_jax.cli.evaluate", "answer held-out questions, score them, write the report"),
    "ask": ("refvlm_jax.cli.ask", "answer one question about one picture"),
    "convert": ("refvlm_jax.cli.convert", "PyTorch weights in and out, and numeric verification"),
    "launch": ("refvlm_jax.cli.launch", "scripts for local, Cloud TPU, GKE and SLURM runs"),
    "doctor": ("refvlm_jax.cli.doctor", "check this machine, with a remedy for what is wrong"),
    "plan": ("refvlm_jax.cli.plan", "does a run fit described hardware, and how fast can it be"),
    "config": ("refvlm_jax.cli.config", "print a recipe as it will run"),
}

# What storage and networks do for a while: a launcher may start the same command again.
PASSING = frozenset(
    {
        errno.EIO,
        errno.ESTALE,
        errno.EAGAIN,
        errno.EBUSY,
        errno.ENOTCONN,
        errno.ETIMEDOUT,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
    }
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; an expected failure prints one line and returns 2, or 1 if it may pass."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="refvlm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    chosen = next((word for word in argv if word in COMMANDS), None)
    for name, (module, summary) in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary)
        if name == chosen:
            importlib.import_module(module).add_arguments(sub)
    args = parser.parse_args(argv)
    try:
        return importlib.import_module(COMMANDS[args.command][0]).run(args)
    except (ValueError, OSError) as error:
        # Every error class of the library derives from ValueError and carries its own remedy.
        print(f"error: {error}", file=sys.stderr)
        return 1 if _may_pass(error) else 2


def _may_pass(error: BaseException | None) -> bool:
    """Whether the error, or what it was raised from, is one of `PASSING`."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in PASSING:
            return True
        error = error.__cause__
    return False


if __name__ == "__main__":
    sys.exit(main())
