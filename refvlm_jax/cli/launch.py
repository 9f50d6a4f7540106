"""`refvlm launch render --config C --target local|tpu_vm|gke|slurm --out DIR`: writes launch scripts."""

import argparse
from pathlib import Path

from refvlm_jax.config.resolve import load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    actions = parser.add_subparsers(dest="action", required=True)
    render = actions.add_parser("render", help="write the files that launch a run")
    render.add_argument("--config", required=True, help="a Python file with get_config()")
    render.add_argument("--target", required=True, choices=("local", "tpu_vm", "gke", "slurm"))
    render.add_argument("--out", required=True, type=Path, help="folder for the files")
    render.add_argument("--pod", help="v5e-64, v5p-128, v6e-64x2 (two slices), h100-8x8, ...")
    render.add_argument("--workdir", default="", help="folder that all hosts share")
    render.add_argument("--processes", type=int, default=1, help="of a local run")
    render.add_argument("--devices", type=int, default=1, help="CPU devices of a local process")
    render.add_argument("--image", default="", help="container image (gke)")
    render.add_argument("--bucket", default="", help="bucket with a hierarchical namespace")
    render.add_argument(
        "--service-account",
        default="default",
        help="Kubernetes account that may use the bucket (gke)",
    )
    render.add_argument(
        "--deterministic", action="store_true", help="bit-identical resume on GPUs, slower"
    )
    render.add_argument(
        "--no-plan", action="store_true", help="do not ask the planner whether the run fits"
    )
    render.add_argument("overrides", nargs="*", help="dotted.field=value")


def run(args: argparse.Namespace) -> int:
    """Renders, writes and lists the files."""
    from refvlm_jax.launching.fits import fits
    from refvlm_jax.launching.render import Launch, render, write

    config = load_config(args.config, args.overrides)
    asked = args.pod is not None and args.target != "local" and not args.no_plan
    launch = Launch(
        config=config,
        recipe=args.config,
        target=args.target,
        pod=args.pod,
        overrides=tuple(args.overrides),
        workdir=args.workdir,
        processes=args.processes,
        devices=args.devices,
        image=args.image,
        bucket=args.bucket,
        service_account=args.service_account,
        deterministic=args.deterministic,
        answer=fits(config, args.pod) if asked else None,
    )
    for path in write(render(launch), args.out):
        print(path)
    return 0
