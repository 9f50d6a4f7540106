"""Host time of a training step: Python and dispatch, without waiting for the devices.

    python benchmarks/host_overhead.py [--steps 100] [--rounds 3] [--out FILE]

Trains the smallest model that has every part, through the real loop, on one device. Counted is the CPU
time of the main thread, which sleeps while the devices compute; a busy machine does not change it. The
loop runs with records every hundred steps; the parts are measured one by one as well.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax

from refvlm_jax.batch import Batch
from refvlm_jax.cli.run import batch_spec, build_model, task_of
from refvlm_jax.config.resolve import resolve, to_dict
from refvlm_jax.config.schema import RunConfig
from refvlm_jax.mesh.build import batch_sharding, make_mesh, make_rules
from refvlm_jax.testing.tiny import random_batch, tiny_config
from refvlm_jax.train.compile_cache import use_compile_cache
from refvlm_jax.train.loop import fit, plan_state
from refvlm_jax.train.model_def import define
from refvlm_jax.train.packing import PackedRows, Packing, RowPacking
from refvlm_jax.train.run import put_batch
from refvlm_jax.train.state import initialize
from refvlm_jax.train.step import make_packed_step

GOAL_MS = 2.0
WARM_UP = 10
ROWS = 2


def tiny_run(steps: int) -> RunConfig:
    model = tiny_config()
    slots = {"refs": 6, "mask_refs": 4, "mask_size": 32, "prompts": 2, "seq_len": 48}
    depth = {"kpt_refs": 2, "depth_refs": 1, "depth_size": 32}
    return resolve(
        {
            "name": "host_overhead",
            "model": {**to_dict(model)},
            "data": {"batch_size": ROWS, **slots, **depth},
            "train": {"steps": steps, "log_every": 100},
            "ckpt": {"every_steps": 10 * steps},
        }
    )


def tiny_batch(config: RunConfig) -> Batch:
    return random_batch(batch_spec(config), ROWS, seed=0, vocab=config.model.llama.vocab_size)


def loop_ms(config: RunConfig, batch: Batch) -> float:
    """Main-thread milliseconds a step of the whole loop, after warm-up."""
    clock: list[float] = []

    def loader(start: int) -> Iterator[Batch]:
        for _ in range(config.train.steps):
            clock.append(time.thread_time())
            yield batch

    with tempfile.TemporaryDirectory() as folder:
        model_fn = partial(build_model, config)
        fit(config, task_of(config), model_fn, loader, Path(folder), quiet=True)
    return 1000 * (clock[-1] - clock[WARM_UP]) / (len(clock) - 1 - WARM_UP)


def mean_ms(call: Callable[[], object], repeats: int) -> float:
    call()
    began = time.thread_time()
    for _ in range(repeats):
        call()
    return 1000 * (time.thread_time() - began) / repeats


def parts_ms(config: RunConfig, batch: Batch, repeats: int) -> dict[str, float]:
    """Main-thread milliseconds of dispatching a step, placing a batch and fetching its numbers."""
    mesh, rules = make_mesh(config.mesh), make_rules(config.mesh)
    plan = plan_state(config, define(partial(build_model, config)))
    state, frozen = initialize(plan, config.seed)
    packing, row_packing = Packing(plan.state), RowPacking(batch)
    step = make_packed_step(plan, packing, task_of(config), config, mesh, rules)
    sharding = batch_sharding(mesh, rules)

    def put() -> PackedRows:
        return put_batch(row_packing.pack(batch), sharding, ROWS)

    on_device = put()
    held = [step(packing.pack(state), frozen, on_device)]

    def dispatch() -> None:
        held[0] = step(held[0][0], frozen, on_device)

    parts = {"dispatch": mean_ms(dispatch, repeats)}
    jax.block_until_ready(held[0])
    parts["put_batch"] = mean_ms(put, repeats)
    parts["fetch_metrics"] = mean_ms(held[0][1].fetch, repeats)
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100, help="counted steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the result as JSON too")
    args = parser.parse_args()
    # What the devices run is not measured, so it need not be fast; compiled once, it serves all rounds.
    jax.config.update("jax_disable_most_optimizations", True)
    use_compile_cache()
    config = tiny_run(args.steps + WARM_UP + 1)
    batch = tiny_batch(config)
    rounds = [loop_ms(config, batch) for _ in range(args.rounds)]
    leaves = len(jax.tree.leaves(plan_state(config, define(partial(build_model, config))).state))
    result = {
        "host_ms_a_step": statistics.median(rounds),
        "rounds": rounds,
        "goal_ms": GOAL_MS,
        "parts_ms": parts_ms(config, batch, args.steps),
        "state_arrays": leaves,
        "batch_arrays": len(dataclasses.fields(batch)),
        "device": str(jax.devices()[0]),
        "python": platform.python_version(),
        "versions": {p: importlib.metadata.version(p) for p in ("jax", "flax")},
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
