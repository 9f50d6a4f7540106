"""`refvlm convert {import,export,inspect,verify}`: PyTorch weights in and out, and proof."""

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    commands = parser.add_subparsers(dest="convert_command", required=True)
    into = commands.add_parser("import", help="PyTorch weights to a checkpoint")
    into.add_argument("source", type=Path, nargs="+", help="folders or files; later ones win")
    into.add_argument("out", type=Path, help="new checkpoint folder")
    into.add_argument("--config", type=Path, help="configuration tree or config.json that wins")
    into.add_argument(
        "--pad-vocab", type=int, default=1, metavar="N", help="make the vocabulary a multiple of N"
    )
    export = commands.add_parser("export", help="a checkpoint to PyTorch weights")
    export.add_argument("checkpoint", type=Path)
    export.add_argument("out", type=Path, help="new folder, or a file ending in .safetensors")
    export.add_argument("--step", type=int, help="default: the newest")
    export.add_argument("--lora", choices=("merge", "adapter"), default="merge")
    export.add_argument(
        "--dtype", choices=("keep", "float32", "bfloat16", "float16"), default="keep"
    )
    export.add_argument("--vocab-size", type=int, help="rows of the vocabulary to keep")
    inspect = commands.add_parser("inspect", help="names, shapes, dtypes, shardings and sizes")
    inspect.add_argument("checkpoint", type=Path)
    inspect.add_argument("--step", type=int, help="default: the newest")
    inspect.add_argument("--depth", type=int, help="levels of the tree to print")
    inspect.add_argument("--json", action="store_true", help="print one record an array")
    verify = commands.add_parser("verify", help="compare with recorded PyTorch numbers or PyTorch")
    verify.add_argument("bundle", type=Path, help="prefix of a golden bundle, or a checkpoint")
    verify.add_argument(
        "--torch",
        type=Path,
        metavar="DIR",
        help="compare the checkpoint with this folder or file instead",
    )
    verify.add_argument("--step", type=int, help="of the checkpoint; default: the newest")
    verify.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Dispatches to the sub-command."""
    commands = {"import": _import, "export": _export, "inspect": _inspect, "verify": _verify}
    return commands[args.convert_command](args)


def _import(args: argparse.Namespace) -> int:
    from refvlm_jax.ckpt.convert.import_ import import_weights

    if args.pad_vocab < 1:
        raise ValueError(f"--pad-vocab {args.pad_vocab} must be at least 1")
    plan = import_weights(args.source, args.out, config=args.config, pad_vocab=args.pad_vocab)
    print(f"{args.out}: {', '.join(part.name for part in plan.parts)}")
    print(
        f"{len(plan.rows)} arrays of {len(plan.tensors) - len(plan.extra)} tensors, "
        f"{len(plan.extra)} kept unused, {len(plan.ignored)} left out"
    )
    return 0


def _export(args: argparse.Namespace) -> int:
    from refvlm_jax.ckpt.convert.export import export_weights

    plan = export_weights(
        args.checkpoint,
        args.out,
        step=args.step,
        lora=args.lora,
        dtype=args.dtype,
        vocab_size=args.vocab_size,
    )
    count = sum(len(item.entries) for item in (*plan.items, *plan.adapter))
    print(f"{args.out}: {count} tensors of {', '.join(part.name for part in plan.parts)}")
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from refvlm_jax.ckpt.convert.inspect import as_json, inspect_path, tree_text

    entries = inspect_path(args.checkpoint, args.step)
    print(json.dumps(as_json(entries)) if args.json else tree_text(entries, args.depth))
    return 0


def _verify(args: argparse.Namespace) -> int:
    """Prints every compared tensor; 1 if one of them fails."""
    from refvlm_jax.ckpt.convert.verify.compare import report, table
    from refvlm_jax.ckpt.convert.verify.golden import verify_bundle

    if args.torch is not None:
        return _certify(args)
    entries = verify_bundle(args.bundle)
    found = report(args.bundle.name, entries)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        print(table(entries))
        failed = len(found["failed"])
        print(f"{found['compared']} tensors compared, {failed or 'none'} failed")
    return 0 if found["passed"] else 1


def _certify(args: argparse.Namespace) -> int:
    """Writes the parity certificate; 1 if a tensor or a layer differs."""
    from refvlm_jax.ckpt.convert.verify.certificate import certify
    from refvlm_jax.ckpt.convert.verify.compare import table

    found, entries = certify(args.bundle, args.torch, step=args.step)
    if args.json:
        print(json.dumps(found, indent=1))
        return 0 if found["passed"] else 1
    if entries:
        print(table(entries))
    if found["layers_not_compared"]:
        print(f"compared by their tensors alone: {', '.join(found['layers_not_compared'])}")
    for key in found["tensors_different"]:
        print(f"{key}: the SHA-256 differs")
    print(
        f"{len(found['tensors'])} tensors compared, "
        f"{len(found['tensors_different']) or 'none'} different; certificate {found['path']}"
    )
    return 0 if found["passed"] else 1
