"""Joining the processes of one run: TPU pods, SLURM and Kubernetes by themselves, others by address."""

import re
from dataclasses import dataclass

from refvlm_jax.config.errors import ConfigError

_FORM = re.compile(r"(?P<address>[^/\s]+:\d+)/(?P<count>\d+)/(?P<index>\d+)")


@dataclass(frozen=True)
class Cluster:
    """One process's place in a run."""

    address: str
    """HOST:PORT on which process 0 listens."""
    count: int
    """Processes of the run."""
    index: int
    """Number of this process, from 0."""

    def __str__(self) -> str:
        return f"{self.address}/{self.count}/{self.index}"


def parse_cluster(text: str) -> Cluster:
    """`HOST:PORT/COUNT/INDEX` as a `Cluster`.

    Raises:
      ConfigError: another form, or an index outside the count.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"--distributed {text!r} must be off, auto or HOST:PORT/COUNT/INDEX, for example "
            "127.0.0.1:9000/2/0"
        )
    cluster = Cluster(match["address"], int(match["count"]), int(match["index"]))
    if cluster.index >= cluster.count:
        raise ConfigError(
            f"--distributed {text!r}: process {cluster.index} of {cluster.count} does not exist; "
            "processes are numbered from 0"
        )
    return cluster


def join(how: str) -> None:
    """Makes this process part of a run; must come before any JAX computation.

    Args:
      how: `off`; `auto`, which asks the TPU pod, SLURM, Open MPI or Kubernetes environment;
        or `HOST:PORT/COUNT/INDEX`.

    Raises:
      ConfigError: `how` is malformed, or `auto` finds no cluster.
    """
    if how == "off":
        return
    import jax

    if how == "auto":
        try:
            jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"--distributed auto found no cluster ({str(error).splitlines()[0]}); name it as "
                "HOST:PORT/COUNT/INDEX, or leave the option out for a single process"
            ) from error
        return
    cluster = parse_cluster(how)
    if cluster.count > 1:
        jax.distributed.initialize(cluster.address, cluster.count, cluster.index)


def leave() -> None:
    """Ends the membership; every process waits for the others."""
    import jax

    if jax.process_count() > 1:
        jax.distributed.shutdown()
