"""A regression model of a few hundred parameters that obeys every contract of training.

Run as a program it is a whole resumable training job:
`python -m refvlm_jax.testing.toy WORKDIR [STEPS] [PAUSE]`.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from refvlm_jax.config.resolve import resolve
from refvlm_jax.config.schema import RunConfig
from refvlm_jax.mesh.rules import constrain
from refvlm_jax.nn.param import normal, ones, param, zeros
from refvlm_jax.train.compile_cache import use_compile_cache
from refvlm_jax.train.task import Task

FEATURES, WIDTH, HIDDEN, LAYERS = 8, 16, 24, 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ToyBatch:
    """Rows of a noisy linear map."""

    x: Any
    """float32[B, 8]."""
    y: Any
    """float32[B]."""
    valid: Any
    """bool[B]; invalid rows carry no loss."""
    sample_id: Any
    """int32[B]."""


class ToyBlock(nnx.Module):
    """A residual block; stacked and scanned like the layers of the real model."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.scale = param(rngs, ones, (WIDTH,), ("norm",))
        self.up = param(rngs, normal(WIDTH**-0.5), (WIDTH, HIDDEN), ("embed", "mlp"))
        self.down = param(rngs, normal(HIDDEN**-0.5), (HIDDEN, WIDTH), ("mlp", "embed"))

    def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B D"]:
        """Adds a gated update to `x`."""
        hidden = jnp.tanh(jnp.einsum("bd,df->bf", x * self.scale, self.up[...]))
        return x + jnp.einsum("bf,fd->bd", constrain(hidden, "batch", "act_mlp"), self.down[...])


class ToyModel(nnx.Module):
    """Input map, scanned blocks, dropout, scalar head."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = param(rngs, normal(FEATURES**-0.5), (FEATURES, WIDTH), (None, "embed"))
        self.blocks = nnx.vmap(ToyBlock)(rngs.split(LAYERS))
        self.head = param(rngs, normal(WIDTH**-0.5), (WIDTH, 1), ("embed", None))
        self.bias = param(rngs, zeros, (1,), ("norm",))

    def __call__(self, x: Float[Array, "B F"], key: Array | None = None) -> Float[Array, " B"]:
        """Predicts one number a row; `key` turns dropout of one tenth on."""
        hidden = constrain(jnp.einsum("bf,fd->bd", x, self.stem[...]), "batch", "act_embed")
        graphdef, stack = nnx.split(self.blocks)

        def body(h: Array, layer: Any) -> tuple[Array, None]:
            return nnx.merge(graphdef, layer)(h), None

        hidden, _ = jax.lax.scan(body, hidden, stack)
        if key is not None:
            hidden = hidden * jax.random.bernoulli(key, 0.9, hidden.shape) / 0.9
        return (jnp.einsum("bd,do->bo", hidden, self.head[...]) + self.bias[...])[:, 0]


def toy_task(*, dropout: bool = False) -> Task:
    """Mean square error of the valid rows and a small pull of all predictions to zero."""

    def loss_sums(model: ToyModel, batch: ToyBatch, key: Array) -> dict[str, Array]:
        predicted = model(batch.x, key if dropout else None).astype(jnp.float32)
        error = jnp.where(batch.valid, predicted - batch.y, 0.0)
        return {"mse": jnp.sum(error**2), "pull": jnp.sum(predicted**2)}

    def loss_counts(batch: ToyBatch) -> dict[str, Array]:
        return {"mse": jnp.sum(batch.valid), "pull": jnp.asarray(batch.y.shape[0])}

    return Task(loss_sums=loss_sums, loss_counts=loss_counts, weights={"pull": 0.01})


def toy_batch(step: int, rows: int) -> ToyBatch:
    """The batch of update `step`: a pure function, so any run can start anywhere."""
    rng = np.random.default_rng([7, step])
    x = rng.normal(size=(rows, FEATURES)).astype(np.float32)
    y = x @ np.linspace(-1, 1, FEATURES, dtype=np.float32) + 0.5
    valid = rng.random(rows) < 0.7
    ids = np.arange(step * rows, (step + 1) * rows, dtype=np.int32)
    return ToyBatch(x=x, y=y.astype(np.float32), valid=valid, sample_id=ids)


def toy_batches(start: int, rows: int, pause: float = 0.0) -> Iterator[ToyBatch]:
    """Endless batches from step `start` on; `pause` seconds slow each down."""
    step = start
    while True:
        time.sleep(pause)
        yield toy_batch(step, rows)
        step += 1


def toy_config(**sections: Any) -> RunConfig:
    """A run of 20 steps with accumulation, decay and clipping; sections replace or add fields."""
    tree: dict[str, Any] = {
        "name": "toy",
        "data": {"batch_size": 16},
        "optim": {"lr": 0.01, "warmup_steps": 3, "weight_decay": 0.1},
        "train": {"steps": 20, "accumulate": 2, "log_every": 1, "tensorboard": False},
        "ckpt": {"every_steps": 5},
    }
    for name, fields in sections.items():
        tree[name] = {**tree.get(name, {}), **fields} if isinstance(fields, dict) else fields
    return resolve(tree)


def main(argv: list[str]) -> int:
    """Trains in a folder: `WORKDIR [steps] [pause]`; the exit code tells how it ended."""
    from refvlm_jax.train.loop import fit

    workdir, steps = argv[0], int(argv[1]) if len(argv) > 1 else 20
    pause = float(argv[2]) if len(argv) > 2 else 0.0
    use_compile_cache()
    config = toy_config(train={"steps": steps})
    result = fit(
        config,
        toy_task(dropout=True),
        ToyModel,
        lambda start: toy_batches(start, config.data.batch_size, pause),
        workdir,
    )
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
