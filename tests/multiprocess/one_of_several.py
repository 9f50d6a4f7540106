"""One process of a sharded toy run: `PROCESS COUNT PORT WORKDIR STEPS SIGNAL_STEP`."""

import os
import signal
import sys

import jax

from refvlm_jax.testing.toy import ToyModel, toy_batches, toy_config, toy_task
from refvlm_jax.train.compile_cache import use_compile_cache
from refvlm_jax.train.loop import fit

DEVICES, ROWS = 4, 16


def main(process, count, port, workdir, steps, signal_step):
    jax.config.update("jax_num_cpu_devices", DEVICES // count)
    use_compile_cache()
    if count > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", count, process)
    mesh = {"preset": "fsdp_tp", "shape": (1, -1, 1, 2)}
    config = toy_config(train={"steps": steps}, mesh=mesh)
    own = slice(process * ROWS // count, (process + 1) * ROWS // count)

    def loader(start):
        for step, batch in enumerate(toy_batches(start, ROWS, pause=0.02), start):
            if process == 0 and step == signal_step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield jax.tree.map(lambda x: x[own], batch)

    result = fit(config, toy_task(dropout=True), ToyModel, loader, workdir)
    if count > 1:
        jax.distributed.shutdown()
    return result.exit_code


if __name__ == "__main__":
    number, several, socket, folder, length, at = sys.argv[1:]
    sys.exit(main(int(number), int(several), socket, folder, int(length), int(at)))
