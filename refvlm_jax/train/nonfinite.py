"""What happens when a loss or a gradient is not a finite number."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from refvlm_jax.config.schema import TrainConfig

_LOG = logging.getLogger(__name__)


class TrainingError(ValueError):
    """Training cannot go on; the message names the step, the samples and the remedy."""


def nonfinite_file(workdir: Path) -> Path:
    """Where this process lists the samples of its bad steps; one file a process."""
    own = f".{jax.process_index()}" if jax.process_count() > 1 else ""
    return workdir / f"nonfinite{own}.jsonl"


class NonFinitePolicy:
    """Applies `train.nonfinite`: writes the samples out, then skips and counts, or stops."""

    def __init__(self, config: TrainConfig, workdir: Path, skipped: int = 0) -> None:
        """A policy that writes below `workdir`; `skipped` updates were left out before."""
        self._config, self._file = config, nonfinite_file(workdir)
        self.skipped = skipped
        """Updates left out so far, restarts included."""
        self._in_a_row = 0

    def judge(
        self, step: int, values: Mapping[str, float], sample_ids: np.ndarray | None
    ) -> dict[str, float]:
        """The finite values of a step, with the count of skipped updates under `skip`.

        Raises:
          TrainingError: a value is not finite and the policy, or its limit, is to stop.
        """
        bad = {k: v for k, v in values.items() if not math.isfinite(v)}
        good = {k: v for k, v in values.items() if k not in bad}
        skipping = self._config.nonfinite == "skip"
        if not bad:
            self._in_a_row = 0
            return good | ({"skipped_updates": float(self.skipped)} if skipping else {})
        ids = None if sample_ids is None else np.asarray(sample_ids).tolist()
        self._write(step, bad, ids)
        found = f"step {step}: {', '.join(f'{k} = {v}' for k, v in bad.items())}"
        if not skipping:
            raise TrainingError(
                f"{found}; samples {'unknown' if ids is None else ids} of this process, listed in "
                f"{self._file}. Nothing was saved since; lower optim.lr or look at these samples, "
                "then run again to resume"
            )
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= self._config.nonfinite_limit:
            raise TrainingError(
                f"{found}; {self._in_a_row} updates in a row were skipped, which is "
                f"train.nonfinite_limit. Their samples are listed in {self._file}; lower optim.lr or "
                "look at these samples, then run again to resume"
            )
        _LOG.warning("%s; update skipped, samples listed in %s", found, self._file)
        return good | {"skipped_updates": float(self.skipped)}

    def _write(self, step: int, bad: Mapping[str, float], ids: list[int] | None) -> None:
        record = {
            "step": step,
            "process": jax.process_index(),
            "values": {k: str(v) for k, v in bad.items()},
            "sample_ids": ids,
        }
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
