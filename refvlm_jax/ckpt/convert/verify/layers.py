"""The layers of a parity certificate: the same random inputs through our parts and PyTorch's classes.

One function a part gives our states and PyTorch's by the name of the layer. Each is done with
PyTorch's model before it reads ours. Maps and pictures are channels-last on both sides.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from refvlm_jax.ckpt.convert.model_config import table
from refvlm_jax.ckpt.convert.orbax_io import StoredCheckpoint
from refvlm_jax.ckpt.convert.part import Part
from refvlm_jax.ckpt.convert.reader import Source
from refvlm_jax.ckpt.convert.verify import torch_side
from refvlm_jax.ckpt.convert.verify.compare import TOLERANCES, Entry, compare
from refvlm_jax.ckpt.convert.whole import WholeConfig
from refvlm_jax.config.model import BoxUnitConfig, KeypointUnitConfig, MaskUnitConfig
from refvlm_jax.models.edits import Edit
from refvlm_jax.train.model_def import define

States = tuple[Mapping[str, Any], Mapping[str, np.ndarray]]
_TOKENS, _PICTURES, _CELLS = (2, 12), 2, 20


@dataclass(frozen=True)
class Pair:
    """One part in both worlds; nothing is read before it is asked for."""

    part: Part
    config: WholeConfig
    stored: StoredCheckpoint
    source: Source
    folder: Path
    rng: np.random.Generator

    @cached_property
    def ours(self) -> Any:
        """Our module in fp32; what the checkpoint may leave out is zero."""
        model, stored = define(partial(self.part.module, self.config)), self.stored
        params = {}
        for own, shape in model.shapes.items():
            name = f"{self.part.name}.{own}"
            there = name in stored.parameters
            value = stored.read(stored.where(name), name) if there else np.zeros(shape)
            params[own] = jnp.asarray(value, jnp.float32)
        return model.merge(params)

    def weights(self, inner: str = "") -> dict[str, np.ndarray]:
        """PyTorch's tensors in fp32 whose keys start with the part's prefix and `inner`, without it.

        Tensors that take part in nothing are left out.
        """
        start = self.part.prefix + inner
        used = {key for row in table(self.config, self.part) for key in row.keys}
        return {
            key.removeprefix(start): self.source.tensors[key].read().astype(np.float32)
            for key in sorted(used & self.source.tensors.keys())
            if key.startswith(start)
        }

    def normal(self, *shape: int) -> np.ndarray:
        """Random fp32 inputs."""
        return self.rng.standard_normal(shape, np.float32)


def layer_entries(pair: Pair) -> list[Entry] | None:
    """Compares a part's layers; None where no PyTorch class can run it from this source."""
    compute = _PARTS.get(pair.part.name)
    if compute is None or not _complete(pair):
        return None
    ours, theirs = compute(pair)
    return [
        compare(f"{pair.part.name}.{layer}", np.asarray(ours[layer]), want, TOLERANCES["out"])
        for layer, want in theirs.items()
    ]


def _complete(pair: Pair) -> bool:
    """Whether PyTorch has all that its class needs; the tensors it lacks are reported as different."""
    if pair.part.name in _OWN_LOADERS:
        return pair.folder.is_dir()
    rows = table(pair.config, pair.part)
    needed = {key for row in rows if not row.optional for key in row.keys}
    return needed <= pair.source.tensors.keys()


def _vision(pair: Pair) -> States:
    size, inner = pair.config.vision.image_size, pair.folder / pair.part.folder
    images = pair.normal(_PICTURES, size, size, 3)
    theirs = torch_side.vision_states(inner if inner.is_dir() else pair.folder, images)
    _, states = pair.ours.hidden_states(jnp.asarray(images))
    return _numbered(states), theirs


def _tower(pair: Pair) -> States:
    c = pair.config.tower
    assert c is not None
    images = pair.normal(_PICTURES, c.image_size, c.image_size, 3)
    theirs = torch_side.tower_states(pair.weights("visual.trunk."), c, images)
    return _numbered(_run(pair.ours, lambda tower, x: tower(x), images), "stage"), theirs


def _projector(pair: Pair) -> States:
    x = pair.normal(*_TOKENS, pair.config.vision.width)
    theirs = torch_side.projector_states(pair.weights(), x)
    last = f"layer_{len(theirs) - 1}"
    return {last: pair.ours(jnp.asarray(x))}, {last: theirs[last]}


def _language(pair: Pair) -> States:
    config = pair.config.llama
    size = config.vocab_size
    tokens = pair.rng.integers(0, size, _TOKENS).astype(np.int32)
    theirs = torch_side.language_states(pair.folder, tokens)
    llama = pair.ours
    positions = np.broadcast_to(np.arange(_TOKENS[1]), _TOKENS)
    edits = [Edit(site="block_in", layer=k, tap=f"layer_{k}") for k in range(config.layers)]
    embeddings = llama.embed(jnp.asarray(tokens))
    found = llama(embeddings, jnp.asarray(positions), jnp.ones(_TOKENS, jnp.int32), edits=edits)
    logits = llama.logits(found.hidden)[..., :size]
    return {**found.taps, "last_hidden": found.hidden, "logits": logits}, theirs


def _box(pair: Pair) -> States:
    assert pair.config.box is not None
    return _detr(pair, pair.config.box, "decoder", "decoder.")


def _mask(pair: Pair) -> States:
    c = pair.config.mask
    assert c is not None
    ours, theirs = _detr(pair, c, "decoder", "query_decoder.")
    dims = [pair.config.unit_dims[i] for i in c.features]
    # No side is a multiple of the next, so that the resizing counts too.
    sides = [5 + 3 * k for k in reversed(range(len(dims)))]
    maps = [pair.normal(_PICTURES, side, side, dim) for side, dim in zip(sides, dims, strict=True)]
    pixels = torch_side.pixel_decoder(pair.weights("pixel_decoder."), maps)
    found = _run(pair.ours.pixel_decoder, lambda decoder, *x: decoder(x), *maps)
    return {**ours, "pixel_decoder": found}, {**theirs, "pixel_decoder": pixels}


def _keypoint(pair: Pair) -> States:
    c = pair.config.keypoint
    assert c is not None
    ours, theirs = _detr(pair, c.box, "box.decoder", "box_decoder.decoder.")
    second, want = _detr(pair, c, "decoder", "kpt_decoder.decoder.")
    return {**ours, **second}, {**theirs, **want}


def _detr(
    pair: Pair, c: BoxUnitConfig | MaskUnitConfig | KeypointUnitConfig, name: str, key: str
) -> States:
    """The decoder at our `name`, PyTorch's `key`: every layer, then all of it with the last norm."""
    (rows, queries), cells = _TOKENS, _CELLS
    shapes = ((rows, queries), (queries,), (rows, cells), (cells,))
    given = [pair.normal(*shape, c.width) for shape in shapes]
    theirs = torch_side.detr_states(pair.weights(key), c.heads, *given)

    def run(decoder: Any, x: Any, query_pos: Any, memory: Any, memory_pos: Any) -> tuple[Any, Any]:
        def body(layer: Any, x: Any, _: None) -> tuple[Any, Any]:
            x = layer(x, query_pos, memory, memory + memory_pos, None, 0.0, None)
            return x, x

        _, states = decoder.layers.scan(body, x)
        return states, decoder(x, query_pos, memory, memory_pos)

    states, last = _run(operator.attrgetter(name)(pair.ours), run, *given)
    ours = {**_numbered(states), "norm": last}
    return tuple({f"{name}.{k}": v for k, v in side.items()} for side in (ours, theirs))  # type: ignore[return-value]


def _sam(pair: Pair) -> States:
    """The encoder, and the decoder on another picture with prompts that reach each of its tensors."""
    from refvlm_jax.models.sam.prompts import Click

    c = pair.config.sam
    assert c is not None
    size, grid = c.encoder.image_size, c.encoder.grid
    clicks = np.array([[Click.ON, Click.AWAY, Click.NONE]] * 2)
    given = {
        "images": pair.normal(1, size, size, 3),
        "picture": pair.normal(1, grid, grid, c.encoder.out_width),
        "points": pair.rng.random((*clicks.shape, 2), np.float32),
        "boxes": pair.rng.random((len(clicks), 4), np.float32),
        "mask": pair.normal(1, 4 * grid, 4 * grid),
    }
    theirs = torch_side.sam_states(pair.weights("sam."), c, clicks, **given)

    def run(unit: Any, images: Any, picture: Any, points: Any, boxes: Any, mask: Any) -> Any:
        embedding, states = unit.encoder.embed(images, states=True)
        found = {**_numbered(states, "encoder.layer"), "encoder.embedding": embedding}
        tokens = [unit.prompts.points(points, jnp.asarray(clicks)), unit.prompts.boxes(boxes)]
        prompts, place = jnp.concatenate(tokens, axis=1), unit.prompts.position.grid(grid, grid)
        dense = {"one": unit.prompts.without_mask(), "many": unit.prompts.masks(mask)}
        for name, added in dense.items():
            pictures = jnp.repeat(picture + added, len(clicks), axis=0)
            masks, quality = unit.decoder(pictures, place, prompts, multimask=name == "many")
            found |= {f"decoder.{name}.masks": masks, f"decoder.{name}.quality": quality}
        return found

    return _run(pair.ours, run, *given.values()), theirs


def _run(module: nnx.Module, call: Callable[..., Any], *inputs: np.ndarray) -> Any:
    """`call(module, *inputs)` as one program: operation by operation takes longer to compile."""
    graph, state = nnx.split(module)
    compiled = jax.jit(lambda state, *x: call(nnx.merge(graph, state), *x))
    return compiled(state, *map(jnp.asarray, inputs))


def _numbered(states: Sequence[Any], name: str = "layer") -> dict[str, Any]:
    return {f"{name}_{k}": state for k, state in enumerate(states)}


_PARTS: Mapping[str, Callable[[Pair], States]] = {
    "vision": _vision,
    "tower": _tower,
    "projector": _projector,
    "llama": _language,
    "box": _box,
    "mask": _mask,
    "sam": _sam,
    "keypoint": _keypoint,
}
_OWN_LOADERS = ("vision", "llama")
"""Parts whose PyTorch class reads its own configuration and weights, and only from a folder."""
