"""The optional adapter between the language model's states and the unit decoders.

A two-way transformer lets each phrase, with its `<REF>` states, read the language model's states of
the picture and the other way round; the decoders then query with the adapted states, and the
adapted picture replaces their last feature map. Shape legend: `B` rows, `S` positions, `D` width,
`I` images a row, `N` patches of a g x g grid, `R` references, `G` phrases adapted a row, `U`
references and `W` tokens of a phrase.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from refvlm_jax.config.model import AdapterConfig
from refvlm_jax.models.two_way import FourierPosition, TwoWayTransformer
from refvlm_jax.nn.activations import gelu
from refvlm_jax.nn.linear import Linear
from refvlm_jax.nn.param import normal, param

NOWHERE = -1  # a position that holds no token


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterTable:
    """Which tokens go into which run of the adapter: one run for each phrase and image of a row."""

    run: Int[Array, "B R"]
    """Run of a reference; -1 for an empty reference or one beyond the adapter's sizes."""
    place: Int[Array, "B R"]
    """Place of a reference among those of its run."""
    refs: Int[Array, "B G U"]
    """Positions of the run's references, NOWHERE beyond them."""
    phrase: Int[Array, "B G W"]
    """Positions of the phrase's tokens, delimiters included, NOWHERE beyond them."""
    image: Int[Array, "B G"]
    """Image of a run."""
    valid: Bool[Array, "B G"]
    """The run has a reference."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapted:
    """What the adapter hands to the unit decoders."""

    states: Float[Array, "B R D"]
    """Adapted state of every reference, zeros where `valid` is False."""
    valid: Bool[Array, "B R"]
    """The reference was adapted."""
    maps: Float[Array, "J g g D"]
    """Adapted picture of each image (J = B * I): the decoders' last feature map. Zeros for an image
    without references, which nothing decodes."""


def phrase_spans(
    tokens: Int[Array, "B S"],
    ref_pos: Int[Array, "B R"],
    ref_group: Int[Array, "B R"],
    ref_valid: Bool[Array, "B R"],
    *,
    open_id: int,
    close_id: int,
) -> Int[Array, "B R 2"]:
    """[start, stop) of the phrase of every reference, delimiters included; start = stop for none.

    Phrases may nest: a closing tag ends the latest open one, and closing tags without an open one
    count for nothing. A reference belongs to the last phrase closed before it, unless a reference of
    another group stands between them.
    """
    opens, closes = tokens == open_id, tokens == close_id
    height = jnp.cumsum(opens.astype(jnp.int32) - closes.astype(jnp.int32), axis=1)
    depth = height - jnp.minimum(jax.lax.cummin(height, axis=1), 0)
    before = jnp.pad(depth[:, :-1], ((0, 0), (1, 0)))
    closes &= before > 0
    at = jnp.arange(tokens.shape[1])
    latest = lambda mask: jnp.where(mask, at, -1).max(-1)  # noqa: E731
    end = latest(closes[:, None] & (at < ref_pos[..., None]))
    level = jnp.take_along_axis(before, jnp.maximum(end, 0), axis=1)
    match = opens[:, None] & (depth[:, None] == level[..., None]) & (at < end[..., None])
    start = latest(match)
    foreign = ref_group[:, :, None] != ref_group[:, None, :]
    foreign &= (ref_pos[:, None] > end[..., None]) & (ref_pos[:, None] < ref_pos[..., None])
    foreign = (foreign & ref_valid[:, None]).any(-1)
    found = ref_valid & (start >= 0) & ~foreign
    return jnp.where(found[..., None], jnp.stack([start, end + 1], axis=-1), 0)


def adapter_table(
    spans: Int[Array, "B R 2"],
    ref_pos: Int[Array, "B R"],
    ref_group: Int[Array, "B R"],
    ref_image: Int[Array, "B R"],
    ref_valid: Bool[Array, "B R"],
    config: AdapterConfig,
) -> AdapterTable:
    """Groups the references of each row by phrase and image, in text order."""
    arrays = (spans, ref_pos, ref_group, ref_image, ref_valid)
    return jax.vmap(functools.partial(_row_table, config=config))(*map(jnp.asarray, arrays))


def adapted_references(
    ref_group: Int[Array, "B R"],
    ref_image: Int[Array, "B R"],
    ref_valid: Bool[Array, "B R"],
    config: AdapterConfig,
) -> Bool[Array, "B R"]:
    """Which references the adapter has room for; the others are not decoded."""
    nowhere = jnp.zeros(ref_valid.shape, jnp.int32)
    spans = jnp.zeros((*ref_valid.shape, 2), jnp.int32)
    return adapter_table(spans, nowhere, ref_group, ref_image, ref_valid, config).run >= 0


def _row_table(
    spans: Int[Array, "R 2"],
    pos: Int[Array, "R"],
    group: Int[Array, "R"],
    image: Int[Array, "R"],
    valid: Bool[Array, "R"],
    *,
    config: AdapterConfig,
) -> AdapterTable:
    """The table of one row."""
    same = (group[:, None] == group[None]) & (image[:, None] == image[None])
    same &= valid[:, None] & valid[None]
    first = same.argmax(-1)
    leads = valid & (first == jnp.arange(len(pos)))
    place = jnp.tril(same, -1).sum(-1)
    number = (jnp.cumsum(leads) - 1)[first]
    kept = valid & (number < config.groups) & (place < config.ref_length)
    run = jnp.where(kept, number, NOWHERE)
    # Dropped references write outside the arrays, which JAX ignores.
    target, head = jnp.where(kept, number, config.groups), jnp.where(leads, number, config.groups)
    refs = jnp.full((config.groups, config.ref_length), NOWHERE, pos.dtype)
    span = jnp.zeros((config.groups, 2), pos.dtype).at[head].set(spans, mode="drop")
    tokens = span[:, :1] + jnp.arange(config.phrase_length)
    return AdapterTable(
        run=run,
        place=place,
        refs=refs.at[target, place].set(pos, mode="drop"),
        phrase=jnp.where(tokens < span[:, 1:], tokens, NOWHERE),
        image=jnp.zeros(config.groups, image.dtype).at[head].set(image, mode="drop"),
        valid=jnp.arange(config.groups) < leads.sum(),
    )


def patch_states(
    hidden: Float[Array, "B S D"], visual_index: Int[Array, "B S"], images: int, patches: int
) -> Float[Array, "B I N D"]:
    """The language model's states of every image patch, zeros where the sequence lacks one.

    It reads `visual_index` and no labels, so that training and generation see the same: while
    generating, `hidden` are the states of the prompt.
    """
    count = images * patches
    visual_index = jnp.asarray(visual_index)
    is_patch = (visual_index >= 0) & (visual_index < count)
    target = jnp.where(is_patch, visual_index, count)
    places = jnp.full((len(target), count), NOWHERE, jnp.int32)
    at = jnp.arange(target.shape[1], dtype=jnp.int32)
    places = jax.vmap(lambda row, index: row.at[index].set(at, mode="drop"))(places, target)
    return _take(hidden, places).reshape(len(target), images, patches, -1)


def _take(hidden: Float[Array, "B S D"], places: Int[Array, "B *n"]) -> Float[Array, "B *n D"]:
    """States at positions of a row; zeros at NOWHERE."""
    states = jax.vmap(lambda row, index: row[jnp.maximum(index, 0)])(hidden, places)
    return jnp.where((places >= 0)[..., None], states, 0)


def _sinusoid(length: int, width: int) -> np.ndarray:
    """Fixed float[T, D] code with sines at even and cosines at odd channels (arXiv 1706.03762)."""
    angle = np.arange(length)[:, None] / 10000.0 ** (np.arange(0, width, 2) / width)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(length, width)


class InputProjection(nnx.Module):
    """Two linear maps with GELU between them, back to the width they came from."""

    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs):
        self.fc1 = Linear(width, hidden, rngs, axes=("embed", "mlp"))
        self.fc2 = Linear(hidden, width, rngs, axes=("mlp", "embed"))

    def __call__(self, x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
        """Applies the maps."""
        return self.fc2(gelu(self.fc1(x)))


class TwoWayAdapter(nnx.Module):
    """Adapts references phrase by phrase; `width` is the language model's."""

    def __init__(self, config: AdapterConfig, width: int, rngs: nnx.Rngs):
        self.config = config
        length = config.ref_length + config.phrase_length
        self.image = InputProjection(width, config.projection_dim, rngs)
        self.text = InputProjection(width, config.projection_dim, rngs)
        law = normal(1.0)
        self.text_embedding = param(rngs, law, (length, width), ("position", "embed"))
        self.image_position = FourierPosition(width, rngs)
        self.transformer = TwoWayTransformer(
            width, config.layers, config.heads, config.mlp_dim, rngs, axes=("embed", "mlp")
        )

    def __call__(
        self,
        hidden: Float[Array, "B S D"],
        patches: Float[Array, "B I N D"],
        table: AdapterTable,
    ) -> Adapted:
        """Adapts every reference of the table.

        Args:
          hidden: last states of the language model. A token is read where it was predicted, one
            position before its own, as the reference does here (and not without adapter); a token
            at position 0 is read as zeros, so keep the last state of a prompt before an answer.
          patches: see `patch_states`.
        """
        rows, runs = table.valid.shape
        grid = _side(patches.shape[2])
        tokens = self._tokens(hidden, table)
        pictures = jax.vmap(lambda row, i: row[i])(self.image(patches), table.image)
        flat = lambda x: x.reshape(rows * runs, *x.shape[2:])  # noqa: E731
        tokens, pictures = self.transformer(
            flat(tokens),
            flat(pictures),
            self.image_position.grid(grid, grid),
            remat=self.config.remat,
        )
        valid = table.run >= 0
        states = tokens.reshape(rows, runs, *tokens.shape[1:])
        states = jax.vmap(lambda row, g, u: row[g, u])(
            states, jnp.maximum(table.run, 0), jnp.where(valid, table.place, 0)
        )
        maps = _mean_over_runs(pictures.reshape(rows, runs, -1), table, patches.shape[1])
        return Adapted(
            states=jnp.where(valid[..., None], states, 0),
            valid=valid,
            maps=maps.reshape(-1, grid, grid, patches.shape[-1]),
        )

    def _tokens(
        self, hidden: Float[Array, "B S D"], table: AdapterTable
    ) -> Float[Array, "B G T D"]:
        """References, then the phrase. Empty places take part unmasked, as in the reference."""
        at = jnp.concatenate([table.refs, table.phrase], axis=-1)
        x = self.text(_take(hidden, at - 1))
        code = _sinusoid(at.shape[-1], hidden.shape[-1])
        return x + (self.text_embedding[...] + code).astype(x.dtype)


def _mean_over_runs(
    pictures: Float[Array, "B G X"], table: AdapterTable, images: int
) -> Float[Array, "B I X"]:
    """Mean over the runs of each image of the row itself; zeros without a run."""
    own = (table.image[..., None] == jnp.arange(images)) & table.valid[..., None]
    share = own / jnp.maximum(own.sum(1, keepdims=True), 1)
    mean = jnp.einsum("bgi,bgx->bix", share, pictures, preferred_element_type=jnp.float32)
    return mean.astype(pictures.dtype)


def _side(patches: int) -> int:
    side = int(np.sqrt(patches))
    if side**2 != patches:
        raise ValueError(f"{patches} patches an image are no square; the adapter needs a grid")
    return side
