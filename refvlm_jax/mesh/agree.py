"""Decisions that every process of a run must take alike."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def all_agree(mine: bool) -> bool:
    """Whether `mine` holds on every process; each must call it the same number of times."""
    if jax.process_count() == 1:
        return mine
    return bool(np.all(multihost_utils.process_allgather(np.asarray(mine))))


def wait_for_all(name: str) -> None:
    """Returns once every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
