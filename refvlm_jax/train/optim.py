"""The optimiser: AdamW or Muon, schedule, clipping and parameter groups, all in this file."""

import math
import re
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from refvlm_jax.config.errors import ConfigError
from refvlm_jax.config.schema import OptimConfig, ParamGroup
from refvlm_jax.train.model_def import Params, is_constant

_ADAM_RMS = 0.2
"""Root mean square of a Muon update: about that of an Adam update (arXiv 2502.16982, section 2.2)."""
Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]


def group_of(config: OptimConfig, name: str) -> ParamGroup:
    """The first group whose pattern is found in the dotted name, or the default group."""
    for group in config.groups:
        if re.search(group.pattern, name):
            return group
    return ParamGroup(pattern="")


def is_trainable(config: OptimConfig) -> Callable[[str], bool]:
    """Tells from a dotted name whether the optimiser sees the parameter."""
    return lambda name: not (is_constant(name) or group_of(config, name).frozen)


def check_groups(config: OptimConfig, names: Sequence[str]) -> None:
    """Raises ConfigError for a pattern that finds no parameter."""
    for index, group in enumerate(config.groups):
        if not any(re.search(group.pattern, name) for name in names):
            parts = sorted({name.split(".")[0] for name in names})
            raise ConfigError(
                f"optim.groups[{index}].pattern = {group.pattern!r} matches no parameter; "
                f"names start with {', '.join(parts)}"
            )


def check_trained(config: OptimConfig, names: Sequence[str]) -> None:
    """Raises ConfigError if nothing is trained."""
    if all(group_of(config, name).frozen for name in names):
        raise ConfigError("optim.groups freeze every parameter; nothing would be trained")


def make_schedule(config: OptimConfig, steps: int) -> Schedule:
    """Learning rate of update 0, 1, ... `steps` - 1.

    Linear warm-up that reaches the peak at its last step, then the configured course, which
    reaches `end_lr_ratio` of the peak at the end of the run. `wsd` (warm-up, stable, decay;
    arXiv 2404.06395, section 4) stays at the peak and falls linearly over the last `decay_ratio` of
    the run's steps.
    """
    warmup, end = config.warmup_steps, config.end_lr_ratio
    # Share of the steps after the warm-up over which `wsd` falls.
    falling = min(steps * config.decay_ratio / max(steps - warmup, 1), 1.0)

    def schedule(step: Int[Array, ""]) -> Float[Array, ""]:
        done = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum((done + 1) / max(warmup, 1), 1.0)
        progress = jnp.clip((done - warmup) / max(steps - warmup, 1), 0.0, 1.0)
        shape = {
            "cosine": 0.5 * (1 + jnp.cos(jnp.pi * progress)),
            "linear": 1 - progress,
            "constant": jnp.ones_like(progress),
            "wsd": jnp.minimum((1 - progress) / falling, 1.0),
        }[config.schedule]
        fall = shape if config.schedule == "constant" else end + (1 - end) * shape
        return config.lr * rise * fall

    return schedule


def decays(name: str, axes: Sequence[str | None]) -> bool:
    """Whether weight decay may touch a parameter: not norms, biases or other vectors.

    The stacking dimension of scanned layers does not count, so a stack of norm scales is exempt.
    """
    is_vector = sum(axis != "layers" for axis in axes) <= 1
    return not is_vector and name.rsplit(".", 1)[-1] not in ("bias", "scale")


def matrix_axes(name: str, axes: Sequence[str | None]) -> optax.contrib.MuonDimensionNumbers | None:
    """Which axes of a parameter make the rows and columns of a weight matrix; None if none do.

    Attention kernels are one matrix over all heads, convolutions one over window and channels.
    Embeddings and the head of the vocabulary are tables of vectors, not maps between states.
    """
    own = [index for index, axis in enumerate(axes) if axis != "layers"]
    if len(own) < 2 or name.rsplit(".", 1)[-1] != "kernel":
        return None
    inputs = 1 if axes[-1] == "head_dim" else len(own) - 1
    return optax.contrib.MuonDimensionNumbers(tuple(own[:inputs]), tuple(own[inputs:]))


def make_optimizer(
    config: OptimConfig, steps: int, axes: Mapping[str, Sequence[str | None]]
) -> optax.GradientTransformation:
    """The configured optimiser over the trained parameters, given by their dotted names.

    Args:
      steps: length of the run, for the schedule.
      axes: logical axes of every parameter by name (`ModelDef.axes`).
    """
    axes = {name: axes[name] for name in filter(is_trainable(config), axes)}
    scales = {name: group_of(config, name).lr_scale for name in axes}
    decay = {name: _decay(config, name, axes[name]) for name in axes}

    def add_decay(updates: Params, params: Params) -> Params:
        return {n: u + decay[n] * params[n] if decay[n] else u for n, u in updates.items()}

    def scale_groups(updates: Params, params: Params | None) -> Params:
        return {n: u * scales[n] if scales[n] != 1 else u for n, u in updates.items()}

    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    # Named parts, so that checkpointed moments are called `adam.mu.<parameter>`.
    return optax.named_chain(
        ("clip", clip),
        *_directions(config, axes),
        ("decay", optax.stateless(add_decay)),
        ("groups", optax.stateless(scale_groups)),
        ("lr", optax.scale_by_learning_rate(make_schedule(config, steps))),
    )


def _directions(
    config: OptimConfig, axes: Mapping[str, Sequence[str | None]]
) -> list[tuple[str, optax.GradientTransformation]]:
    dtype = None if config.momentum_dtype == "param" else jnp.dtype(config.momentum_dtype)
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.eps, mu_dtype=dtype)
    if config.name == "adamw":
        return [("adam", adam)]
    found = {name: matrix_axes(name, axes[name]) for name in axes}
    matrices = {name: numbers for name, numbers in found.items() if numbers is not None}

    def match_adam(updates: Params, params: Params | None) -> Params:
        return {n: u * _adam_like(u.shape, matrices[n]) for n, u in updates.items()}

    muon = optax.contrib.scale_by_muon(
        beta=config.muon_beta, weight_dimension_numbers=matrices, mu_dtype=dtype
    )
    muon = optax.chain(muon, optax.stateless(match_adam))
    rest = [name for name in axes if name not in matrices]
    return [("muon", _only(list(matrices), muon)), ("adam", _only(rest, adam))]


def _adam_like(shape: Sequence[int], numbers: optax.contrib.MuonDimensionNumbers) -> float:
    """Factor that gives an orthogonal matrix the root mean square of an Adam update."""
    sides = [math.prod(shape[axis] for axis in axes) for axes in numbers]
    return _ADAM_RMS * max(sides) ** 0.5


def _only(
    names: Sequence[str], transformation: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Applies a transformation to the named parameters and passes the others on."""

    def init(params: Params) -> optax.OptState:
        return transformation.init({name: params[name] for name in names})

    def update(
        updates: Params, state: optax.OptState, params: Params | None = None
    ) -> tuple[Params, optax.OptState]:
        own = None if params is None else {name: params[name] for name in names}
        moved, state = transformation.update({name: updates[name] for name in names}, state, own)
        return {**updates, **moved}, state

    return optax.GradientTransformation(init, update)


def _decay(config: OptimConfig, name: str, axes: Sequence[str | None]) -> float:
    own = group_of(config, name).weight_decay
    value = config.weight_decay if own is None else own
    return value if decays(name, axes) else 0.0
