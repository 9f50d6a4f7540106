"""`refvlm train --config RECIPE --workdir DIR [--distributed auto] [a.b=3 ...]`: trains; a second call
resumes."""

import argparse
from functools import partial
from pathlib import Path

from refvlm_jax.config.resolve import load_config
from refvlm_jax.config.schema import RunConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument("--config", required=True, help="a Python file with get_config()")
    parser.add_argument("--workdir", required=True, type=Path, help="checkpoints and metrics")
    parser.add_argument(
        "--distributed",
        default="off",
        help="off, auto (TPU pod, SLURM, Kubernetes) or HOST:PORT/COUNT/INDEX",
    )
    parser.add_argument("overrides", nargs="*", help="dotted.field=value")


def run(args: argparse.Namespace) -> int:
    """Trains one recipe; 0 when finished, 3 when stopped by a signal after saving."""
    from refvlm_jax.train.distributed import join, leave

    config = load_config(args.config, args.overrides)
    join(args.distributed)
    status = train(config, args.workdir)
    leave()
    return status


def train(config: RunConfig, workdir: Path) -> int:
    """Trains to the configured number of steps, resuming from the newest checkpoint."""
    from refvlm_jax.cli.data_setup import check_data, train_batches
    from refvlm_jax.cli.run import build_model, task_of
    from refvlm_jax.train.compile_cache import use_compile_cache
    from refvlm_jax.train.loop import fit
    from refvlm_jax.train.start import check_sources, load_start

    use_compile_cache()
    check_data(config.data)
    check_sources(config.ckpt.start_from)
    result = fit(
        config,
        task_of(config),
        partial(build_model, config),
        partial(train_batches, config),
        workdir,
        start=lambda plan, say: load_start(plan, config.ckpt, config.model, say),
    )
    return result.exit_code
