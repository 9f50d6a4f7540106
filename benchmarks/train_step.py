"""Step time of the JAX trainer beside a plain PyTorch one: same sizes, same batch, same machine.

    python benchmarks/train_step.py [--config configs/shapes_tiny.py] [--steps 10] [--rounds 3]

Rounds alternate between the two so that a drifting machine hurts both; the printed ratio is the median
of the per-round ratios. Batches are random but have the recipe's sizes.
"""

import argparse
import importlib.metadata
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
import torch
from torch_refvlm import TorchRefVLM

from refvlm_jax.batch import Batch
from refvlm_jax.cli.run import batch_spec, build_model, task_of
from refvlm_jax.config.resolve import load_config
from refvlm_jax.config.schema import RunConfig
from refvlm_jax.mesh.build import batch_sharding, make_mesh, make_rules
from refvlm_jax.testing.tiny import random_batch
from refvlm_jax.train.loop import plan_state
from refvlm_jax.train.model_def import define
from refvlm_jax.train.run import put_batch
from refvlm_jax.train.state import initialize
from refvlm_jax.train.step import make_train_step


def jax_stepper(config: RunConfig, batch: Batch) -> tuple[Callable[[], float], int]:
    mesh, rules = make_mesh(config.mesh), make_rules(config.mesh)
    plan = plan_state(config, define(partial(build_model, config)))
    state, frozen = initialize(plan, config.seed)
    step = make_train_step(plan, task_of(config), config, mesh, rules)
    device_batch = put_batch(batch, batch_sharding(mesh, rules), config.data.batch_size)
    held = [state]

    def run() -> float:
        held[0], metrics = step(held[0], frozen, device_batch)
        return float(metrics["loss"])

    return run, sum(x.size for x in plan.state.params.values())


def torch_stepper(config: RunConfig, batch: Batch) -> tuple[Callable[[], float], int]:
    torch.manual_seed(0)
    model = TorchRefVLM(config.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optim.lr)
    tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in batch.asdict().items()}

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model(tensors)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
        optimizer.step()
        return loss.item()

    return run, sum(p.numel() for p in model.parameters())


def seconds_a_step(run: Callable[[], float], steps: int) -> float:
    began = time.perf_counter()
    for _ in range(steps):
        run()
    return (time.perf_counter() - began) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/shapes_tiny.py")
    parser.add_argument("--steps", type=int, default=10, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the result as JSON too")
    args = parser.parse_args()
    config = load_config(args.config)
    rows = config.data.batch_size
    batch = random_batch(batch_spec(config), rows, seed=0, vocab=config.model.llama.vocab_size)
    ours, our_size = jax_stepper(config, batch)
    plain, plain_size = torch_stepper(config, batch)
    for run in (ours, ours, plain, plain):
        run()  # compilation and warm-up
    pairs = [
        (seconds_a_step(ours, args.steps), seconds_a_step(plain, args.steps))
        for _ in range(args.rounds)
    ]
    jax_time, torch_time = (statistics.median(times) for times in zip(*pairs, strict=True))
    result = {
        "config": args.config,
        "rows": rows,
        "parameters": {"jax": our_size, "torch": plain_size},
        "seconds_a_step": {"jax": jax_time, "torch": torch_time},
        "samples_a_second": {"jax": rows / jax_time, "torch": rows / torch_time},
        "torch_over_jax": statistics.median(b / a for a, b in pairs),
        "device": str(jax.devices()[0]),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {p: importlib.metadata.version(p) for p in ("jax", "flax", "torch")},
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
