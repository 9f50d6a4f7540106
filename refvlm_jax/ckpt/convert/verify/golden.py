"""`refvlm convert verify BUNDLE`: every recorded number of a golden bundle against this library."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from refvlm_jax.ckpt.convert.names import grouped, split
from refvlm_jax.ckpt.convert.tensors import ConvertError
from refvlm_jax.ckpt.convert.verify import forward as whole_model
from refvlm_jax.ckpt.convert.verify.bundle import Bundle, open_bundle
from refvlm_jax.ckpt.convert.verify.compare import TOLERANCES, Entry, compare, compare_norms
from refvlm_jax.train.model_def import ModelDef, define

Arrays = dict[str, Any]
Run = Callable[[Mapping[str, Any]], tuple[Arrays, Arrays]]
"""Modules by part -> (`out.*`, `loss.*`)."""


def verify_bundle(path: Path) -> list[Entry]:
    """Compares every `out.*`, `loss.*`, `gradnorm.*` and `grad.*` that was recorded.

    Raises:
      ConvertError: the bundle cannot be read, or holds a part without a module.
    """
    bundle = open_bundle(path)
    with jax.default_matmul_precision("highest"):
        return _entries(bundle)


def _entries(bundle: Bundle) -> list[Entry]:
    models = define_parts(bundle)
    run, real = _runner(bundle)
    params = {name: jnp.asarray(value) for name, value in bundle.params().items()}
    recorded = {kind: bundle.group(kind) for kind in TOLERANCES}
    differentiate = bool(recorded["gradnorm"] or recorded["grad"])

    def numbers(params: Mapping[str, Any]) -> tuple[Any, tuple[Arrays, Arrays]]:
        outs, losses = run(_merge(models, params))
        return losses["loss"] if losses else jnp.zeros(()), (outs, losses)

    if differentiate:
        (_, (outs, losses)), grads = jax.jit(jax.value_and_grad(numbers, has_aux=True))(params)
    else:
        (_, (outs, losses)), grads = jax.jit(numbers)(params), {}
    entries = [_output(name, outs, want, real(name)) for name, want in _sorted(recorded["out"])]
    entries += [
        compare(f"loss.{name}", _single(losses.get(name)), np.ravel(want), TOLERANCES["loss"])
        for name, want in _sorted(recorded["loss"])
    ]
    if not differentiate:
        return entries
    by_key = torch_tensors(bundle, {name: np.asarray(grad) for name, grad in grads.items()})
    if len(bundle.plan.parts) == 1:  # bundles of one module leave its prefix out
        start = bundle.plan.parts[0].prefix
        by_key |= {key.removeprefix(start): grad for key, grad in by_key.items()}
    norms = {key: float(np.linalg.norm(g.astype(np.float64))) for key, g in by_key.items()}
    entries += compare_norms(norms, recorded["gradnorm"])
    return entries + [
        compare(f"grad.{key}", by_key.get(key), want, TOLERANCES["grad"])
        for key, want in _sorted(recorded["grad"])
    ]


def define_parts(bundle: Bundle) -> dict[str, ModelDef]:
    """The modules of the bundle's parts, without numbers."""
    config = bundle.plan.config
    return {part.name: define(partial(part.module, config)) for part in bundle.plan.parts}


def torch_tensors(bundle: Bundle, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays by our names as PyTorch tensors by their keys."""
    return {
        key: tensor
        for group in grouped(bundle.plan.rows)
        for key, tensor in split(group, [arrays[row.name] for row in group])
    }


def _merge(models: Mapping[str, ModelDef], params: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, model in models.items():
        start = f"{name}."
        own = {k.removeprefix(start): v for k, v in params.items() if k.startswith(start)}
        found[name] = model.merge(own)
    return found


def _runner(bundle: Bundle) -> tuple[Run, Callable[[str], np.ndarray | None]]:
    """How to run the bundle's modules, and where each of its outputs means something."""
    names, arrays = {part.name for part in bundle.plan.parts}, bundle.group("in")
    if len(names) == 1 and names <= _ALONE.keys():
        (name,) = names
        return lambda models: _ALONE[name](models[name], arrays, bundle), lambda name: None
    if missing := {"vision", "projector", "llama"} - names:
        raise ConvertError(
            f"{bundle.name} has no {', '.join(sorted(missing))}; expected a bundle of the whole "
            "model or of a tower alone"
        )
    given = whole_model.prepare(bundle.config, bundle.plan.config, arrays)

    def run(models: Mapping[str, Any]) -> tuple[Arrays, Arrays]:
        outs, costs = whole_model.forward(models, given)
        losses = {f"{name}_cost": cost for name, cost in costs.items()}
        return outs, {**losses, "loss": whole_model.total_cost(costs, bundle.config)}

    return run, lambda name: whole_model.compared_positions(name, given)


def _tower(tower: Any, arrays: Mapping[str, np.ndarray], _: Bundle) -> tuple[Arrays, Arrays]:
    """Stem and stages, NCHW as they were recorded."""
    images = jnp.asarray(arrays["pixel_values"].transpose(0, 2, 3, 1))
    maps = {"stem": tower.stem(images)}
    maps |= {f"stage{k}": found for k, found in enumerate(tower(images))}
    return {name: found.transpose(0, 3, 1, 2) for name, found in maps.items()}, {}


def _sam(unit: Any, arrays: Mapping[str, np.ndarray], bundle: Bundle) -> tuple[Arrays, Arrays]:
    """Embedding, probabilities of the valid references, and the mask cost."""
    pictures = jnp.asarray(arrays["pixel_values_tower"].transpose(0, 2, 3, 1))
    embedding, valid = unit.encode(pictures), arrays["ref_mask"]
    logits = unit(jnp.asarray(arrays["ref_hidden_states"]), jnp.asarray(valid), (embedding,))
    own = whole_model.Answered.listed(valid, bundle.config.get("decode_seqs"), arrays)
    cost = whole_model.mask_cost(logits, own, arrays, unit.config)
    outs = {
        "image_embedding": embedding.transpose(0, 3, 1, 2),
        "mask_probabilities": jax.nn.sigmoid(own.rows(logits)),
    }
    return outs, {"mask": cost, "mask_cost": cost, "loss": cost}


_ALONE = {"tower": _tower, "sam": _sam}
"""Parts that have bundles of their own: (module, `in.*`, bundle) -> (`out.*`, `loss.*`), where
`loss.loss` is what gradients were recorded of."""


def _output(name: str, outs: Arrays, want: np.ndarray, real: np.ndarray | None) -> Entry:
    found = outs.get(name)
    if found is not None and name.endswith("_loss"):
        return compare(f"out.{name}", _single(found), np.ravel(want), TOLERANCES["loss"])
    if found is not None and real is not None and want.shape[:2] == real.shape:
        found, want = np.asarray(found)[real], want[real]
    return compare(f"out.{name}", found, want, TOLERANCES["out"])


def _single(value: Any) -> np.ndarray | None:
    return None if value is None else np.asarray(value).reshape(1)


def _sorted(group: Mapping[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    return sorted(group.items())
