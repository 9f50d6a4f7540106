"""One process that loads PyTorch weights onto the mesh of all of them: `SOURCE OUT CLUSTER`.

It writes how many bytes of files it read, and the sums of the arrays, which take all of them.
"""

import json
import sys
from functools import partial
from pathlib import Path

import jax
from jax import numpy as jnp

from refvlm_jax.ckpt.convert import safetensors_io
from refvlm_jax.ckpt.convert.import_ import plan_import
from refvlm_jax.ckpt.convert.reader import open_source
from refvlm_jax.ckpt.convert.whole import write_config
from refvlm_jax.cli.run import build_model
from refvlm_jax.config.resolve import resolve
from refvlm_jax.train.distributed import join, leave, parse_cluster
from refvlm_jax.train.loop import plan_state
from refvlm_jax.train.model_def import define
from refvlm_jax.train.start import load_start


def main(source, out, cluster):
    join(cluster)
    stored = plan_import(open_source(source))
    sizes = {row.name: row.dtype(stored.tensors).itemsize for row in stored.rows}
    model = write_config(stored.config)
    config = resolve(
        {
            "name": "load",
            "model": model,
            "data": {"kpt_refs": 1},
            "mesh": {"preset": "fsdp", "shape": (1, -1, 1, 1)},
            "ckpt": {"start_from": (str(source),)},
        }
    )
    plan = plan_state(config, define(partial(build_model, config)))
    read, fill = [], safetensors_io._fill
    # The arrays are so small that one page of a file covers what several processes want.
    safetensors_io._GAP = 0

    def counted(file, start, row, path):
        read.append(row.nbytes)
        return fill(file, start, row, path)

    safetensors_io._fill = counted
    values = load_start(plan, config.ckpt, config.model)
    sums = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.abs(x).sum(), tree))(values)
    found = {
        "read": sum(read),
        "own": sum(_own_elements(value) * sizes[name] for name, value in values.items()),
        "whole": sum(value.size * sizes[name] for name, value in values.items()),
        "sums": {name: float(value) for name, value in jax.device_get(sums).items()},
    }
    (out / f"{parse_cluster(cluster).index}.json").write_text(json.dumps(found))
    leave()


def _own_elements(value):
    """Elements of the distinct parts of an array that this process holds."""
    return sum({str(part.index): part.data.size for part in value.addressable_shards}.values())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
