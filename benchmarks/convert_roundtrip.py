"""Time, throughput and peak memory of a conversion there and back, on the released model's shapes.

    python benchmarks/convert_roundtrip.py [--layers 2] [--work DIR] [--keep] [--json FILE]

Writes a random Vicuna-7B + CLIP-L + ConvNeXt-L + decoders export folder, imports it, exports the result,
imports that again, and compares every tensor of both folders and of both checkpoints. Without --layers
the whole model: about 45 GB of disk, since the first folder goes once it is compared (not with --keep).
Each step runs in a process of its own, so that its peak memory is its own.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

Readers = Mapping[str, Callable[[], np.ndarray]]
"""What reads an array, by name."""


def write(folder: Path, layers: int | None) -> int:
    from refvlm_jax.testing.torch_layout import released_config, write_released

    return write_released(folder, released_config(layers))


def imported(source: Path, out: Path) -> None:
    from refvlm_jax.ckpt.convert.import_ import import_weights

    import_weights([source], out)


def exported(checkpoint: Path, out: Path) -> None:
    from refvlm_jax.ckpt.convert.export import export_weights

    export_weights(checkpoint, out)


def folder_tensors(folder: Path) -> Readers:
    from refvlm_jax.ckpt.convert.reader import open_source

    return {key: tensor.read for key, tensor in open_source(folder).tensors.items()}


def checkpoint_tensors(folder: Path) -> Readers:
    from refvlm_jax.ckpt.convert.orbax_io import open_checkpoint

    stored = open_checkpoint(folder)
    return {
        name: partial(stored.read, item, name)
        for item, arrays in stored.items.items()
        for name in arrays
    }


def different(readers: Callable[[Path], Readers], first: Path, second: Path) -> list[str]:
    """Names of arrays that are not the same bit for bit."""
    a, b = readers(first), readers(second)
    found = sorted(a.keys() ^ b.keys())
    for name in a.keys() & b.keys():
        x, y = a[name](), b[name]()
        if (x.dtype, x.shape) != (y.dtype, y.shape) or x.tobytes() != y.tobytes():
            found.append(name)
    return found


def disk_rate(folder: Path, gigabytes: int = 4) -> float:
    """GB a second of plain sequential writing, until the disk has it."""
    block, path = b"\1" * 2**24, folder / "disk"
    count = gigabytes * 10**9 // len(block)
    started = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(count):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    path.unlink()
    return count * len(block) / 1e9 / seconds


def largest_stack(checkpoint: Path) -> int:
    from refvlm_jax.ckpt.convert.inspect import inspect_path

    return max(entry.nbytes for entry in inspect_path(checkpoint))


def apart(step: Callable, *args: object) -> dict:
    """Runs a step in a fresh process; its result, seconds and peak memory."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measured, (step, args))


def _measured(step: Callable, args: tuple) -> dict:
    import refvlm_jax.ckpt.convert.export  # noqa: F401  imports are no part of the conversion

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    result = step(*args)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"result": result, "seconds": seconds, "peak": peak * 1024, "base": before * 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, help="at most so many layers of every stack")
    parser.add_argument("--work", type=Path, help="folder for the copies; default: a temporary one")
    parser.add_argument("--keep", action="store_true", help="leave the copies there")
    parser.add_argument("--json", type=Path, help="write the report there too")
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(dir=args.work, prefix="convert-roundtrip-"))
    try:
        text = json.dumps(run(work, args.layers, args.keep), indent=1)
        print(text)
        if args.json:
            args.json.write_text(text + "\n", encoding="utf-8")
    finally:
        if not args.keep:
            shutil.rmtree(work, ignore_errors=True)


def run(work: Path, layers: int | None, keep: bool) -> dict:
    source, checkpoint, back, again = (
        work / name for name in ("source", "checkpoint", "back", "again")
    )
    disk = disk_rate(work)
    size = apart(write, source, layers)["result"]
    steps = {
        "import": apart(imported, source, checkpoint),
        "export": apart(exported, checkpoint, back),
    }
    wrong = apart(different, folder_tensors, source, back)["result"]
    if not keep:
        shutil.rmtree(source)
    steps["import_again"] = apart(imported, back, again)
    wrong += apart(different, checkpoint_tensors, checkpoint, again)["result"]
    largest = apart(largest_stack, checkpoint)["result"]
    report = {
        "layers": layers or "all",
        "bytes": size,
        "bit_identical": not wrong,
        "different": wrong[:5],
        "largest_stacked_bytes": largest,
        "disk_gb_per_second": round(disk, 3),
    }
    for name, found in steps.items():
        report[name] = {
            "seconds": round(found["seconds"], 2),
            "gb_per_second": round(size / 1e9 / found["seconds"], 3),
            "peak_bytes": found["peak"],
            "peak_above_imports_bytes": found["peak"] - found["base"],
        }
    return report


if __name__ == "__main__":
    main()
