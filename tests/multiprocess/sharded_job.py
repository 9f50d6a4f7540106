"""One process of a sharded toy run: `WORKDIR STEPS SIGNAL_STEP PAUSE CLUSTER`.

Every row is a function of its global number, and every step counts a fingerprint of the rows that the
devices of all processes trained on together.
"""

import os
import signal
import sys
import time

import jax
import numpy as np
from jax import numpy as jnp

from data_pipelines.loader import LoaderConfig
from refvlm_jax.mesh.build import batch_sharding, data_shard, make_mesh, make_rules
from refvlm_jax.testing.toy import FEATURES, ToyBatch, ToyModel, toy_config, toy_task
from refvlm_jax.train.compile_cache import use_compile_cache
from refvlm_jax.train.distributed import join, leave, parse_cluster
from refvlm_jax.train.loop import fit
from refvlm_jax.train.task import Task

ROWS, PRIME = 24, 65521


def fingerprint(ids):
    """Sum over rows of a scrambled row number; small enough for float32."""
    return (ids * 7919 % PRIME).sum()


def batch_of(rows):
    """The toy batch of these global rows."""
    draws = [np.random.default_rng([7, row]) for row in rows]
    x = np.stack([rng.normal(size=FEATURES).astype(np.float32) for rng in draws])
    y = x @ np.linspace(-1, 1, FEATURES, dtype=np.float32) + 0.5
    valid = np.array([rng.random() < 0.7 for rng in draws])
    return ToyBatch(x=x, y=y.astype(np.float32), valid=valid, sample_id=np.array(rows, np.int32))


def counting_task():
    """The toy's objective with a term of no weight that counts the rows' fingerprint."""
    toy = toy_task(dropout=True)

    def sums(model, batch, key):
        return {**toy.loss_sums(model, batch, key), "rows": jnp.zeros(())}

    def counts(batch):
        return {**toy.loss_counts(batch), "rows": fingerprint(batch.sample_id)}

    return Task(loss_sums=sums, loss_counts=counts, weights=toy.weights)


def main(workdir, steps, signal_step, pause, cluster):
    use_compile_cache()
    # The many small programs of a start count too when a dozen processes start.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    join(cluster)
    first_process = parse_cluster(cluster).index == 0
    config = toy_config(
        data={"batch_size": ROWS},
        train={"steps": steps, "accumulate": 1},
        mesh={"preset": "fsdp_tp", "shape": (1, -1, 1, 2)},
        ckpt={"every_steps": 4, "keep": 3},
    )
    sharding = batch_sharding(make_mesh(config.mesh), make_rules(config.mesh))
    index, count = data_shard(sharding, ROWS)

    def loader(start):
        place = LoaderConfig(
            batch_size=ROWS, process_index=index, process_count=count, start_step=start
        )
        for step in range(steps - start + 1):
            time.sleep(pause)
            if first_process and start + step == signal_step:
                os.kill(os.getpid(), signal.SIGTERM)
            own = range(step * place.local_rows, (step + 1) * place.local_rows)
            yield batch_of([place.global_row(local) for local in own])

    result = fit(config, counting_task(), ToyModel, loader, workdir)
    jax.block_until_ready(result.state)
    leave()
    return result.exit_code


if __name__ == "__main__":
    folder, length, at, wait, place = sys.argv[1:]
    sys.exit(main(folder, int(length), int(at), float(wait), place))
