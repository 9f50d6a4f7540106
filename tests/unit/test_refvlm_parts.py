"""The composed model with its optional parts: tower, adapter and SAM."""

import dataclasses
import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_generate import NEW, with_answer

from refvlm_jax.batch import NO_GROUP, Batch
from refvlm_jax.config.model import RefVLMConfig, RegionPromptConfig
from refvlm_jax.config.schema import OptimConfig, ParamGroup
from refvlm_jax.infer.generate import decode_answers, generate
from refvlm_jax.models.adapter import phrase_spans
from refvlm_jax.models.objective import loss_counts, loss_sums, loss_weights
from refvlm_jax.models.refvlm import RefTable, RefVLM
from refvlm_jax.testing.tiny import random_batch, tiny_config, tiny_spec, whole_config
from refvlm_jax.train.model_def import ModelDef, Params, define
from refvlm_jax.train.optim import check_groups, is_trainable
from refvlm_jax.trp.tokens import Unit

WHOLE = whole_config()
PARTS = (
    "vision", "region_prompts", "projector", "llama", "tower", "adapter", "box", "sam", "keypoint",
    "depth",
)  # fmt: skip


@cache
def model_of(config: RefVLMConfig) -> tuple[ModelDef, Params]:
    model = define(lambda rngs: RefVLM(config, rngs))
    return model, jax.jit(model.init)(jax.random.key(0))


def _total(model: ModelDef, params: Params, batch: Batch) -> tuple[jax.Array, dict]:
    sums = loss_sums(model.merge(params), batch, None)
    return sum(sums.values()), sums


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Few kinds of tokens, so that phrase tags are among them."""
    return random_batch(tiny_spec(WHOLE, 56), rows=4, seed=5, vocab=9)


@pytest.mark.slow(2)
def test_losses_and_gradients_of_every_part(batch: Batch) -> None:
    model, params = model_of(WHOLE)
    gradients = jax.jit(jax.value_and_grad(partial(_total, model), has_aux=True))
    (_, sums), grads = gradients(params, batch)
    counts = loss_counts(WHOLE, batch)
    assert set(sums) == set(counts) == set(loss_weights(WHOLE))
    assert all(np.isfinite(value) for value in sums.values())
    assert all(counts[f"{unit}"] > 0 for unit in ("box_l1", "mask_dice", "keypoint_l1"))
    assert {name.split(".")[0] for name in grads} == set(PARTS)
    for part in PARTS:
        own = [g for name, g in grads.items() if name.startswith(f"{part}.")]
        assert all(np.isfinite(g).all() for g in own), part
        assert any(np.abs(g).max() > 0 for g in own), part


def test_frozen_groups_keep_tower_and_encoder_from_the_optimiser() -> None:
    model, _ = model_of(WHOLE)
    pattern = r"^vision\.|^tower\.|^sam\.(encoder|prompts)\."
    config = OptimConfig(groups=(ParamGroup(pattern=pattern, frozen=True),))
    check_groups(config, list(model.axes))
    trained = {name for name in model.axes if is_trainable(config)(name)}
    assert not any(name.startswith(("vision.", "tower.", "sam.encoder.")) for name in trained)
    assert {name.split(".")[0] for name in trained} == set(PARTS) - {"vision", "tower"}
    assert any(name.startswith("sam.decoder.") for name in trained)


def test_a_row_is_independent_of_its_neighbours(batch: Batch) -> None:
    model, params = model_of(WHOLE)
    run = jax.jit(lambda p, b: model.merge(p)(b)[1])
    together = run(params, batch)
    alone = run(params, jax.tree.map(lambda x: x[2:3], batch))
    # Compiled for other sizes, convolutions round differently.
    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    close(alone.boxes[0], together.boxes[2])
    close(alone.mask_logits[0], together.mask_logits[2])
    close(alone.keypoints.points[0], together.keypoints.points[2])
    close(alone.depth[0], together.depth[2])


def test_units_read_the_maps_of_the_tower_and_masks_those_of_sam(batch: Batch) -> None:
    model, params = model_of(WHOLE)
    features = jax.jit(lambda p, b: model.merge(p).encode_images(b.images))(params, batch)
    assert [x.shape for x in features.maps] == [(4, 12, 12, 8), (4, 6, 6, 12), (4, 4, 4, 32)]
    assert features.tokens.shape == (4, 16, 32) and features.sam.shape == (4, 5, 5, 16)
    without = dataclasses.replace(WHOLE, tower=None, sam=None, box=None, keypoint=None, depth=None)
    plain, own = model_of(without)
    assert own.keys() <= params.keys()
    found = jax.jit(lambda p, b: plain.merge(p).encode_images(b.images))(params, batch)
    np.testing.assert_allclose(found.tokens, features.tokens, rtol=1e-4, atol=1e-5)
    assert found.sam is None and len(found.maps) == 4


def test_optional_parts_change_no_other_parameter() -> None:
    plain, whole = model_of(tiny_config())[1], model_of(WHOLE)[1]
    shared = [name for name in plain if name in whole and plain[name].shape == whole[name].shape]
    assert any(name.startswith("depth.") for name in shared)
    starts = ("vision.", "projector.", "llama.")
    for name in (name for name in shared if name.startswith(starts)):
        np.testing.assert_array_equal(plain[name], whole[name])


def test_references_without_room_in_the_adapter_are_not_supervised(batch: Batch) -> None:
    config = dataclasses.replace(WHOLE, adapter=dataclasses.replace(WHOLE.adapter, groups=1))
    _, params = model_of(WHOLE)
    counts, wide = loss_counts(config, batch), loss_counts(WHOLE, batch)
    assert 0 < counts["box_l1"] < wide["box_l1"]
    first = batch.ref_group.min(1, where=batch.ref_valid, initial=99)[:, None]
    kept = batch.ref_valid & (batch.ref_group == first)
    kept &= np.cumsum(kept, axis=1) <= config.adapter.ref_length
    assert counts["box_l1"] == (kept & (batch.ref_unit == Unit.BOX)).sum()
    group = np.where(kept, batch.ref_group, NO_GROUP)
    alone = dataclasses.replace(batch, ref_valid=kept, ref_group=group)
    model = define(lambda rngs: RefVLM(config, rngs))
    run = jax.jit(lambda p, b: _total(model, p, b)[1])
    found, want = run(params, batch), run(params, alone)
    for name in found:
        np.testing.assert_allclose(found[name], want[name], rtol=1e-5)


def test_generated_references_decode_as_teacher_forced_ones() -> None:
    prompts = random_batch(tiny_spec(WHOLE), rows=3, seed=1, vocab=20)
    model, params = model_of(WHOLE)
    run = jax.jit(lambda p, b: generate(model.merge(p), b, max_new=NEW, eos_id=-1))
    generated = run(params, prompts)
    refs = _references(rows=3)
    config = _phrases_in(np.asarray(generated.tokens), np.asarray(prompts.tokens), refs)
    model = define(lambda rngs: RefVLM(config, rngs))
    images = 1
    decoded = jax.jit(lambda p, g, r: decode_answers(model.merge(p), g, r, images))(
        params, generated, refs
    )
    answered = _with_references(with_answer(prompts, np.asarray(generated.tokens)), refs)
    _, forced = jax.jit(lambda p, b: model.merge(p)(b))(params, answered)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(forced.boxes)[0, 0]).max() > 0
    close(decoded.boxes, forced.boxes)
    close(decoded.mask_logits, forced.mask_logits, atol=1e-4)
    close(decoded.keypoints.points, forced.keypoints.points)
    close(decoded.depth, forced.depth)
    np.testing.assert_array_equal(decoded.mask_slots.slot, forced.mask_slots.slot)


def _phrases_in(tokens: np.ndarray, prompt: np.ndarray, refs: RefTable) -> RefVLMConfig:
    """The configuration whose phrase tags enclose a phrase of these answers, and none before them."""
    where = (refs.pos, refs.group, refs.valid)
    for pair in itertools.permutations(np.setdiff1d(tokens, prompt).tolist(), 2):
        spans = phrase_spans(jnp.asarray(tokens), *where, open_id=pair[0], close_id=pair[1])
        if (spans[..., 1] - spans[..., 0]).max() > 1:
            return dataclasses.replace(
                WHOLE, adapter=dataclasses.replace(WHOLE.adapter, phrase_ids=pair)
            )
    raise AssertionError("no two generated tokens enclose anything; draw other prompts")


def _references(rows: int) -> RefTable:
    """A reference of every unit; the first at the first generated token."""
    units = [Unit.BOX, Unit.MASK, Unit.KEYPOINT, Unit.BOX, Unit.DEPTH]
    fields = {
        "pos": [0, 5, 6, 7, 8], "unit": units, "image": [0] * 5, "group": [0, 1, 1, 1, 2],
    }  # fmt: skip
    arrays = {name: jnp.tile(jnp.asarray(v, jnp.int32), (rows, 1)) for name, v in fields.items()}
    return RefTable(**arrays, valid=jnp.ones((rows, 5), bool))


def _with_references(batch: Batch, refs: RefTable) -> Batch:
    """The batch with references at the same tokens of the answer."""
    start = (np.asarray(batch.segment_ids) > 0).sum(1, keepdims=True) - NEW
    return dataclasses.replace(
        batch,
        ref_pos=np.asarray(refs.pos) + start,
        ref_unit=refs.unit,
        ref_image=refs.image,
        ref_valid=refs.valid,
        ref_group=refs.group,
    )


def test_mask_unit_and_sam_exclude_one_another() -> None:
    both = dataclasses.replace(WHOLE, mask=tiny_config().mask)
    with pytest.raises(ValueError, match=r"model\.mask and model\.sam both decode masks"):
        jax.eval_shape(lambda: RefVLM(both, nnx.Rngs(0)))


def test_parameters_of_another_model_are_refused() -> None:
    model, params = model_of(WHOLE)
    model.check(params)
    with pytest.raises(ValueError, match=r"parameter tower\..* but none in the checkpoint"):
        model.check({n: p for n, p in params.items() if not n.startswith("tower.")})
    plain, _ = model_of(tiny_config())
    with pytest.raises(ValueError, match=r"parameter box\.memory\.kernel has the shape \(48, 16\)"):
        plain.check(params)


def test_legacy_region_prompts_skip_the_projector(batch: Batch) -> None:
    legacy = RegionPromptConfig(num_patches=1, pooling="legacy")
    llama = dataclasses.replace(tiny_config().llama, width=24)
    config = dataclasses.replace(tiny_config(), region_prompts=legacy, llama=llama)
    model, params = model_of(config)

    @jax.jit
    def visual(params: Params, batch: Batch) -> jax.Array:
        made = model.merge(params)
        return made.visual_tokens(made.encode_images(batch.images), batch)

    tokens = visual(params, batch)
    assert tokens.shape == (4, 16 + 2 * 2, 24)
    none = {n: p * 0 if n.startswith("projector.") else p for n, p in params.items()}
    without = np.asarray(visual(none, batch))
    assert np.abs(without[:, :16]).max() == 0 and np.abs(without[:, 16:]).max() > 0
