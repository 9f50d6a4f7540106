"""Starting a run from weights: earlier runs, imported checkpoints, or PyTorch files as they are.

Every process reads the bytes of its own shards and no others.
"""

import dataclasses
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import jax
import numpy as np

from refvlm_jax.ckpt.convert.sharded import ReadPart, Weights, open_weights, place_part
from refvlm_jax.ckpt.convert.tensors import Index, Shape
from refvlm_jax.ckpt.items import CheckpointError
from refvlm_jax.config.schema import CkptConfig
from refvlm_jax.train.model_def import is_constant
from refvlm_jax.train.state import StatePlan

_LOG = logging.getLogger(__name__)
_VOCABULARY = {"llama.embedding": 0, "llama.lm_head": 1}
"""Parameter -> the axis along which it holds tokens."""
_MEANING = (
    "heads", "kv_heads", "head_dim", "rope_theta", "norm_eps", "sliding_window", "activation",
    "patch_size", "feature_layer", "image_mean", "image_std", "pooling", "features", "norm_groups",
)  # fmt: skip
"""Fields that change what weights of the same shapes compute."""


def load_start(
    plan: StatePlan, config: CkptConfig, model: Any, say: Callable[[str], None] = _LOG.info
) -> dict[str, jax.Array]:
    """First values of a run's parameters from `ckpt.start_from`, laid out as planned.

    Of two sources that hold the same parameter the later one gives it. New rows of the vocabulary
    start as the model would draw them. A trained part that no source has is left out: it starts
    from scratch, and `say` names it.

    Args:
      model: the run's `RefVLMConfig`.

    Raises:
      CheckpointError: a parameter is missing, has another shape, or would silently be lost.
      ConvertError: a source is damaged or of no known kind.
    """
    if not config.start_from:
        return {}
    wanted = {**plan.state.params, **plan.frozen}
    fresh = [re.compile(pattern) for pattern in config.start_fresh]
    asked = {n: a for n, a in wanted.items() if not any(p.search(n) for p in fresh)}
    found: dict[str, Weights] = {}
    for path in config.start_from:
        source = open_weights(Path(path))
        _check_lora(source, wanted)
        _warn_of_meaning(source, model)
        found |= {name: source for name in source.shapes if name in asked}
        if unused := Counter(n.split(".")[0] for n in source.shapes if n not in asked):
            say(f"{path}: not used: {_counted(unused)}")
    _check_missing(plan, asked, found, say)
    return {
        name: _place(name, source, wanted[name], plan, model.llama.vocab_size)
        for name, source in found.items()
    }


def _place(
    name: str, source: Weights, target: jax.ShapeDtypeStruct, plan: StatePlan, tokens: int
) -> jax.Array:
    shape, read = source.shapes[name], source.reader(name)
    if name in _VOCABULARY:
        law = plan.model.variables[name][1].get_metadata()["law"]
        rows = target.shape[_VOCABULARY[name]]
        shape, read = _more_tokens(name, source, tokens, rows, law.scale)
    if shape != target.shape:
        raise CheckpointError(
            f"{source.path}: {name} has the shape {shape}, this model needs {target.shape}; set the "
            f"model section to what the weights were made with, or let it start from scratch with "
            f"ckpt.start_fresh=({_exactly(name)},)"
        )
    return place_part(shape, target.sharding, read, target.dtype)


def _more_tokens(
    name: str, source: Weights, tokens: int, rows: int, deviation: float
) -> tuple[Shape, ReadPart]:
    """A vocabulary table of `rows` rows: a source's tokens, its padding cut off, and drawn ones.

    Raises:
      CheckpointError: the source has more tokens than the model.
    """
    axis, shape, read = _VOCABULARY[name], source.shapes[name], source.reader(name)
    kept = source.tokens or shape[axis]
    if kept > tokens:
        raise CheckpointError(
            f"{source.path}: {name} holds {kept} tokens, more than model.llama.vocab_size = "
            f"{tokens}; set model.llama.vocab_size={kept}"
        )
    if kept == rows:
        return shape, read
    whole, new = list(shape), list(shape)
    whole[axis], new[axis] = rows, rows - kept
    # The same on every process, whatever part of it each one needs.
    drawn = np.random.default_rng(crc32(name.encode())).normal(0.0, deviation, new)

    def part(index: Index) -> np.ndarray:
        start, stop, _ = index[axis].indices(rows)
        inside, beyond = list(index), list(index)
        inside[axis] = slice(min(start, kept), min(stop, kept))
        beyond[axis] = slice(max(start - kept, 0), max(stop - kept, 0))
        old, more = read(tuple(inside)), drawn[tuple(beyond)]
        return np.concatenate([old, more.astype(old.dtype)], axis)

    return tuple(whole), part


def _check_lora(source: Weights, wanted: Mapping[str, Any]) -> None:
    if lost := sorted(n for n in source.shapes if ".lora." in n and n not in wanted):
        raise CheckpointError(
            f"{source.path} holds the LoRA factor {lost[0]}, which this model lacks; merge it into the "
            "weights first with `refvlm convert export`, or set model.llama.lora"
        )


def _check_missing(
    plan: StatePlan,
    asked: Mapping[str, Any],
    found: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    """Frozen parameters and halves of parts must come from a source."""
    held = {name.split(".")[0] for name in found}
    missing = sorted(asked.keys() - found.keys())
    for name in missing:
        lora = ".lora." in name and name in plan.state.params
        frozen = name in plan.frozen and not is_constant(name)
        if frozen or (name.split(".")[0] in held and not lora):
            kind = "the frozen parameter" if frozen else "the parameter"
            raise CheckpointError(
                f"ckpt.start_from has no source with {kind} {name} of shape {asked[name].shape}; add "
                f"one, or let it start from scratch with ckpt.start_fresh=({_exactly(name)},)"
            )
    if missing:
        say(f"from scratch: {_counted(Counter(n.split('.')[0] for n in missing))}")


def _warn_of_meaning(source: Weights, model: Any) -> None:
    """Says where the same numbers would compute something else."""
    for name in {n.split(".")[0] for n in source.shapes}:
        theirs, ours = (getattr(c, name, None) for c in (source.config, model))
        if not dataclasses.is_dataclass(theirs) or not dataclasses.is_dataclass(ours):
            continue
        for field in _MEANING:
            a, b = (getattr(c, field, None) for c in (theirs, ours))
            if a != b:
                _LOG.warning(
                    "%s was made with model.%s.%s = %s, this run has %s",
                    source.path, name, field, a, b,
                )  # fmt: skip


def _exactly(name: str) -> str:
    return repr(f"^{re.escape(name)}$")


def _counted(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count} arrays)" for name, count in sorted(parts.items()))


def check_sources(sources: Sequence[str]) -> None:
    """Raises CheckpointError for a source that is not there, before anything is compiled."""
    for source in sources:
        if not Path(source).exists():
            raise CheckpointError(
                f"ckpt.start_from: {source} does not exist; give a run's work folder, an imported "
                "checkpoint, or a file or folder of PyTorch weights"
            )
