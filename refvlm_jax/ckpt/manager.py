"""Checkpoints under our own names; the only file that knows Orbax.

A step folder holds the items `params`, `frozen`, `optimizer` (flat dictionaries of arrays by dotted
name), `run` (step and random key) and `meta` (JSON: schema version, step, configuration).
"""

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from refvlm_jax.ckpt.checksum import device_checksums, host_checksum
from refvlm_jax.ckpt.items import ArrayInfo, CheckpointError, compare, named_leaves, replace_leaves
from refvlm_jax.config.schema import CkptConfig
from refvlm_jax.mesh.agree import all_agree, wait_for_all
from refvlm_jax.train.model_def import Params
from refvlm_jax.train.state import TrainState

SCHEMA_VERSION = 1
_ARRAYS = ("params", "frozen", "optimizer", "run")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Restored:
    """A run as it was saved."""

    step: int
    state: TrainState
    frozen: Params
    meta: dict[str, Any]


class CheckpointManager:
    """Saves in the background, keeps the newest few, restores the newest that is whole."""

    def __init__(self, folder: str | Path, config: CkptConfig) -> None:
        """Opens or creates `folder`; interrupted writes left in it are removed."""
        self._folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.keep,
            enable_async_checkpointing=config.async_save,
            cleanup_tmp_directories=True,
        )
        with quiet_orbax():
            self._orbax = ocp.CheckpointManager(self._folder, options=options)

    def save(self, step: int, state: TrainState, frozen: Params, meta: Mapping[str, Any]) -> float:
        """Starts writing a checkpoint; returns the seconds that training was held up."""
        started = time.perf_counter()
        arrays = {k: v for k, v in _items(state, frozen).items() if v}
        items = {k: ocp.args.StandardSave(v) for k, v in arrays.items()}
        sums = {k: device_checksums(v) for k, v in arrays.items()}
        info = {**meta, "schema_version": SCHEMA_VERSION, "step": step, "checksums": sums}
        self._orbax.save(step, args=ocp.args.Composite(**items, meta=ocp.args.JsonSave(info)))
        return time.perf_counter() - started

    def latest_step(self) -> int | None:
        """The newest committed step, or None."""
        return self._orbax.latest_step()

    def restore(self, state: TrainState, frozen: Mapping[str, Any]) -> Restored:
        """The newest whole checkpoint, laid out as the abstract `state` and `frozen` say.

        A damaged checkpoint is set aside (renamed to `damaged_<step>_<time>`, never removed) once an
        older one restored. Processes of a run agree on the step, whoever of them saw the damage.

        Raises:
          CheckpointError: no checkpoint, none readable, or one that does not fit the model.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._orbax.all_steps(), reverse=True):
            restored, why = self._try_step(step, state, frozen)
            if restored is not None:
                self._set_aside(damaged, step)
                return restored
            damaged[step] = why
        found = "it holds no checkpoint"
        if damaged:
            reasons = "; ".join(f"{step}: {damaged[step]}" for step in sorted(damaged))
            found = f"steps {sorted(damaged)} are damaged ({reasons})"
        raise CheckpointError(
            f"nothing to restore in {self._folder}: {found}; use another folder to start afresh"
        )

    def wait(self) -> None:
        """Blocks until every started write is committed."""
        self._orbax.wait_until_finished()

    def close(self) -> None:
        """Finishes writing and releases threads."""
        self._orbax.wait_until_finished()
        self._orbax.close()

    def _try_step(
        self, step: int, state: TrainState, frozen: Mapping[str, Any]
    ) -> tuple[Restored | None, str]:
        """A checkpoint, or None and what is wrong with it; the same on every process."""
        folder = self._folder / str(step)
        wanted = {k: v for k, v in _items(state, frozen).items() if v}
        meta: dict[str, Any] = {}
        items: dict[str, dict[str, jax.Array]] = {}
        why = ""
        try:
            meta, items = _read(folder, wanted)
        except CheckpointError:
            raise
        except Exception as error:  # every storage layer raises its own types
            why = _first_line(error)
        # Only the process whose part is damaged notices, and the others must not go on without it.
        if not all_agree(not why):
            return None, why or "another process could not read its part"
        try:
            for item, arrays in items.items():
                stored = item_info(folder, item)
                same = {n: a for n, a in arrays.items() if a.dtype == stored[n].dtype}
                _verify(item, meta["checksums"][item], device_checksums(same))
        except OSError as error:
            return None, _first_line(error)
        opt_state = replace_leaves(state.opt_state, items.get("optimizer") or {})
        run = items["run"]
        restored = TrainState(run["step"], items["params"], opt_state, run["rng"])
        return Restored(step, restored, items.get("frozen") or {}, meta), ""

    def _set_aside(self, damaged: Mapping[int, str], restored: int) -> None:
        if not damaged:
            return
        if jax.process_index() == 0:
            for step, why in damaged.items():
                aside = self._folder / f"damaged_{step}_{int(time.time())}"
                os.replace(self._folder / str(step), aside)
                _LOG.warning(
                    "checkpoint %s is damaged (%s); it was moved to %s, and the run goes on from "
                    "step %d",
                    self._folder / str(step),
                    why,
                    aside,
                    restored,
                )
        wait_for_all("refvlm_set_aside")
        self._orbax.reload()


def _read(
    folder: Path, wanted: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, dict[str, jax.Array]]]:
    """Metadata and this process's part of every item.

    Goes past Orbax's manager, whose restore waits for all processes: one that cannot read its part
    would leave the others waiting.

    Raises:
      CheckpointError: whole, but made for another model.
      Exception: damaged.
    """
    meta = read_meta(folder)
    stored = {item: item_info(folder, item) for item in meta["checksums"]}
    for item, infos in stored.items():
        if lost := sorted(meta["checksums"][item].keys() - infos.keys()):
            raise OSError(f"{item} array {lost[0]} is gone from {folder / item}")
    for item, arrays in wanted.items():
        compare(folder, item, stored.get(item, {}), arrays)
    with quiet_orbax():
        handler = ocp.StandardCheckpointHandler()
        return meta, {
            item: handler.restore(_epath(folder / item), args=ocp.args.StandardRestore(arrays))
            for item, arrays in wanted.items()
        }


def load_params(folder: str | Path, step: int | None = None) -> dict[str, np.ndarray]:
    """All parameters, trained and frozen, as host arrays by dotted name.

    Args:
      folder: the run's checkpoint folder.
      step: which checkpoint; None is the newest.

    Raises:
      CheckpointError: no such checkpoint, or it cannot be read.
    """
    path = step_folder(folder, step)
    params: dict[str, np.ndarray] = {}
    for item in ("params", "frozen"):
        infos = item_info(path, item)
        as_numpy = {n: ocp.RestoreArgs(restore_type=np.ndarray) for n in infos}
        if not infos:
            continue
        try:
            with quiet_orbax(), ocp.PyTreeCheckpointer() as reader:
                arrays = reader.restore(path / item, restore_args=as_numpy)
            found = {name: host_checksum(array) for name, array in arrays.items()}
            _verify(item, read_meta(path)["checksums"][item], found)
            params |= arrays
        except Exception as error:
            raise CheckpointError(
                f"{path / item} cannot be read ({_first_line(error)}); "
                "it is damaged, load an earlier step"
            ) from error
    return params


def inspect(folder: str | Path, step: int | None = None) -> dict[str, ArrayInfo]:
    """`item/name` -> shape and dtype of every array of a checkpoint; reads no array."""
    path = step_folder(folder, step)
    return {f"{i}/{n}": info for i in _ARRAYS for n, info in item_info(path, i).items()}


def item_info(folder: Path, item: str) -> dict[str, ArrayInfo]:
    """Name -> shape and dtype of one item; empty where the item was not saved."""
    if not (folder / item).is_dir():
        return {}
    with quiet_orbax():
        tree = ocp.PyTreeCheckpointHandler().metadata(_epath(folder / item)).tree
    return {n: ArrayInfo(tuple(m.shape), str(m.dtype)) for n, m in tree.items()}


def read_meta(folder: Path) -> dict[str, Any]:
    """The JSON metadata of a step folder.

    Raises:
      CheckpointError: written by another schema version.
    """
    meta = json.loads((folder / "meta" / "metadata").read_text(encoding="utf-8"))
    if meta.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{folder} has schema version {meta.get('schema_version')}, expected {SCHEMA_VERSION}; "
            "read it with the version of this package that wrote it"
        )
    return meta


def checkpoints_of(workdir: Path) -> Path:
    """Where the steps lie: `checkpoints` of a run's folder, or the folder that an import made."""
    inside = workdir / "checkpoints"
    return inside if inside.is_dir() else workdir


def step_folder(folder: str | Path, step: int | None = None) -> Path:
    """The folder of a committed step, the newest if None; CheckpointError if there is none."""
    root = Path(folder).absolute()
    steps = [int(p.name) for p in root.iterdir() if p.name.isdigit()] if root.is_dir() else []
    if not steps or (step is not None and step not in steps):
        wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise CheckpointError(f"{root} holds {wanted}; steps found: {sorted(steps) or 'none'}")
    return root / str(max(steps) if step is None else step)


def _verify(item: str, stored: Mapping[str, int], found: Mapping[str, int]) -> None:
    """Raises OSError naming the first array whose bits are not those that were saved."""
    if bad := [name for name, value in found.items() if stored[name] != value]:
        raise OSError(f"{item} array {bad[0]} does not have the checksum it was saved with")


def _items(state: TrainState, frozen: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        "params": dict(state.params),
        "frozen": dict(frozen),
        "optimizer": named_leaves(state.opt_state),
        "run": {"step": state.step, "rng": state.rng},
    }


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[
        :200
    ]


def _epath(path: Path) -> Any:
    from etils import epath

    return epath.Path(path)


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Silences Orbax's notes about items whose handlers are only known at restore."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
