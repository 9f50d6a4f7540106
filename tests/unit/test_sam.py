"""SAM as a mask unit: shapes, independence of references, chunks, resizing, freezing, refusals."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from refvlm_jax.config.model import SamEncoderConfig, SamUnitConfig
from refvlm_jax.config.schema import OptimConfig, ParamGroup
from refvlm_jax.models.clip_vit import resize_images
from refvlm_jax.models.sam.encoder import SamEncoder
from refvlm_jax.models.units.sam import SamUnit
from refvlm_jax.train.model_def import define
from refvlm_jax.train.optim import is_trainable

ENCODER = SamEncoderConfig(
    image_size=32,
    patch_size=4,
    width=12,
    layers=3,
    heads=2,
    mlp_dim=16,
    global_layers=(1,),
    window=3,
    out_width=16,
    attention_block=0,
)
CONFIG = SamUnitConfig(
    num_queries=6,
    encoder=ENCODER,
    layers=2,
    heads=2,
    mlp_dim=16,
    iou_hidden=8,
    mask_prompt_channels=8,
    chunk=2,
)
DIM = 10


@pytest.fixture(scope="module")
def unit() -> SamUnit:
    made = SamUnit(CONFIG, DIM, nnx.Rngs(0))
    # Born zero; numbers make relative positions count in the tests.
    for block, key in ((made.encoder.windowed.block, 1), (made.encoder.whole.block, 2)):
        for table in (block.attn.rows, block.attn.columns):
            table[...] = jax.random.normal(jax.random.key(key), table.shape)
    return made


def picture(rows: int = 2) -> jax.Array:
    return jax.random.normal(jax.random.key(5), (rows, 8, 8, 16))


def queries(rows: int = 2) -> jax.Array:
    return jax.random.normal(jax.random.key(6), (rows, 6, DIM))


def filled(*counts: int) -> jax.Array:
    return jnp.arange(6) < jnp.asarray(counts)[:, None]


def test_shapes_and_dtypes(unit: SamUnit) -> None:
    images = jnp.zeros((2, 20, 20, 3), jnp.uint8)
    embedding = unit.encode(images, jnp.bfloat16)
    assert embedding.shape == (2, 8, 8, 16) and embedding.dtype == jnp.bfloat16
    logits = unit(queries().astype(jnp.bfloat16), filled(6, 1), (embedding,))
    assert logits.shape == (2, 6, 32, 32) and logits.dtype == jnp.float32
    assert jnp.isfinite(logits).all()


def test_references_do_not_see_one_another(unit: SamUnit) -> None:
    valid = filled(4, 4)
    before = unit(queries(), valid, (picture(),))
    after = unit(queries().at[0, 1].add(1.0), valid.at[0, 3].set(False), (picture(),))
    same = np.array([[True, False, True, False], [True] * 4])
    difference = np.asarray(jnp.abs(after - before).max((-2, -1)))[:, :4]
    assert (difference[same] == 0).all() and (difference[~same] > 1e-3).all()


@pytest.mark.parametrize("chunk", [1, 3, 6])
def test_chunks_change_nothing(unit: SamUnit, chunk: int) -> None:
    config = dataclasses.replace(CONFIG, chunk=chunk)
    other = nnx.clone(unit)
    other.config = config
    valid = filled(3, 0)
    want = unit(queries(), valid, (picture(),))
    np.testing.assert_allclose(other(queries(), valid, (picture(),)), want, atol=1e-5)
    assert not np.asarray(want)[~np.asarray(valid)].any()
    assert np.asarray(want)[np.asarray(valid)].any((-2, -1)).all()


def test_a_batch_without_references_has_zero_gradients(unit: SamUnit) -> None:
    def total(q: jax.Array, image: jax.Array, valid: jax.Array) -> jax.Array:
        return jnp.square(unit(q, valid, (image,))).sum()

    grad = jax.jit(jax.grad(total, argnums=(0, 1)))
    for g in grad(queries(), picture(), filled(0, 0)):
        assert (g == 0).all()
    q, image = grad(queries(), picture(), filled(2, 0))
    assert (jnp.abs(q).max(-1) > 0).tolist() == filled(2, 0).tolist()
    assert (jnp.abs(image).max((1, 2, 3)) > 0).tolist() == [True, False]


def test_windows_keep_to_themselves_and_global_layers_do_not(unit: SamUnit) -> None:
    """A changed pixel changes its own window of 3 x 3 patches only, until a global layer comes."""
    images = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    changed = images.copy()
    changed[0, 13, 25] += 5

    def reach(global_layers: tuple[int, ...]) -> set[tuple[int, int]]:
        config = dataclasses.replace(ENCODER, layers=1, global_layers=global_layers)
        encoder = SamEncoder(config, nnx.Rngs(0))
        encoder.neck = lambda x: x
        first, second = (np.asarray(encoder(jnp.asarray(x))) for x in (images, changed))
        return {tuple(c) for c in np.argwhere(np.abs(first - second)[0].max(-1)).tolist()}

    assert reach(()) == {(y, x) for y in range(3, 6) for x in range(6, 8)}
    assert len(reach((0,))) == 64


@pytest.mark.parametrize("block", [16, 32, 24])
def test_attention_blocks_change_nothing(unit: SamUnit, block: int) -> None:
    """24 does not divide the 64 patches; all attend at once then."""
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 12))
    attend = jax.tree.map(lambda v: v[0], nnx.state(unit.encoder.whole.block.attn))
    layer = nnx.merge(nnx.graphdef(unit.encoder.whole.block.attn), attend)
    want = layer(x)
    layer.block = block
    np.testing.assert_allclose(layer(x), want, atol=1e-5)


@pytest.mark.parametrize("size", [64, 20])
@pytest.mark.parametrize(
    ("method", "filter"),
    [("bilinear", Image.Resampling.BILINEAR), ("cubic", Image.Resampling.BICUBIC)],
)
def test_pictures_are_resized_as_pillow_does(size: int, method: str, filter: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 33, 33, 3)).astype(np.uint8)
    want = Image.fromarray(image[0]).resize((size, size), filter)
    found = np.asarray(resize_images(jnp.asarray(image), size, method))[0]
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - np.asarray(want)).max() <= 1
    as_float = jnp.zeros((1, size, size, 3))
    assert resize_images(as_float, size) is as_float


def test_the_documented_group_freezes_encoder_and_prompts() -> None:
    group = ParamGroup(pattern="(encoder|prompts)[.]", frozen=True)
    trained = is_trainable(OptimConfig(groups=(group,)))
    model = define(lambda rngs: SamUnit(CONFIG, DIM, rngs))
    assert {name.split(".")[0] for name in model.shapes if trained(name)} == {"query", "decoder"}
    assert {n.split(".")[0] for n in model.shapes if not trained(n)} == {"encoder", "prompts"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 30}, r"sam\.encoder\.image_size=30 must be a multiple of patch_size=4"),
        ({"heads": 5}, r"sam\.encoder\.width=12 cannot be cut into heads=5"),
        ({"global_layers": (1, 3)}, r"sam\.encoder\.global_layers=\(1, 3\) must .* in 0\.\.2"),
        ({"global_layers": (2, 0)}, r"sam\.encoder\.global_layers=\(2, 0\) must be increasing"),
    ],
)
def test_impossible_encoders_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: SamEncoder(dataclasses.replace(ENCODER, **fields), nnx.Rngs(0)))


def test_chunks_must_divide_the_slots() -> None:
    config = dataclasses.replace(CONFIG, chunk=4)
    with pytest.raises(ValueError, match=r"sam\.num_queries=6 must be a multiple of sam\.chunk=4"):
        jax.eval_shape(lambda: SamUnit(config, DIM, nnx.Rngs(0)))
