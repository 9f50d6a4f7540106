"""The training objective of REF-VLM: un-normalised sums per term, and what to divide them by.

Sums and counts are separate so that accumulation over micro-batches and sharding over devices give
exactly the loss of the whole global batch (the reference averages per device).
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from refvlm_jax.batch import NO_GROUP, Batch
from refvlm_jax.config.model import RefVLMConfig
from refvlm_jax.models.adapter import adapted_references
from refvlm_jax.models.llama import vocabulary_logits
from refvlm_jax.models.placement import pixel_mask
from refvlm_jax.models.refvlm import RefVLM, UnitOutputs
from refvlm_jax.models.units.depth_losses import (
    depth_loss_counts,
    depth_loss_sums,
    depth_loss_weights,
)
from refvlm_jax.models.units.dispatch import SlotMap, slots
from refvlm_jax.models.units.keypoint_losses import (
    keypoint_loss_counts,
    keypoint_loss_sums,
    keypoint_loss_weights,
)
from refvlm_jax.models.units.losses import box_loss_sums, mask_loss_sums
from refvlm_jax.trp.tokens import IGNORE_ID, Unit


def loss_weights(
    config: RefVLMConfig,
    *,
    llm: float = 1.0,
    box: float = 1.0,
    mask: float = 1.0,
    keypoint: float = 1.0,
    depth: float = 1.0,
) -> dict[str, float]:
    """Weight of every loss term from the decoders' coefficients and one coefficient per part."""
    weights = {"llm": llm}
    if config.box:
        weights["box_l1"] = box * config.box.bbox_weight
        weights["box_giou"] = box * config.box.giou_weight
    if config.mask_unit:
        weights["mask_focal"] = mask * config.mask_unit.focal_weight
        weights["mask_dice"] = mask * config.mask_unit.dice_weight
    if config.keypoint:
        weights |= keypoint_loss_weights(config.keypoint, keypoint)
    if config.depth:
        weights |= depth_loss_weights(config.depth, depth)
    return weights


def loss_counts(config: RefVLMConfig, batch: Batch) -> dict[str, Float[Array, ""]]:
    """What each term is averaged over: supervised tokens, decoded references of each unit."""
    counts = {"llm": (_next_tokens(batch) != IGNORE_ID).sum().astype(jnp.float32)}
    if config.box:
        boxes = _box_valid(config, batch).sum().astype(jnp.float32)
        counts |= {"box_l1": boxes, "box_giou": boxes}
    if config.mask_unit:
        masks = _mask_targets(config, batch)[1].sum().astype(jnp.float32)
        counts |= {"mask_focal": masks, "mask_dice": masks}
    if config.keypoint:
        keypoints, valid = _keypoint_targets(config, batch)
        counts |= keypoint_loss_counts(keypoints, valid, config.keypoint)
    if config.depth:
        valid = _depth_targets(config, batch)[1]
        known, relative = batch.depth > 0, jnp.asarray(batch.depth_relative)
        counts |= depth_loss_counts(known, relative, valid, config.depth)
    return counts


def loss_sums(
    model: RefVLM, batch: Batch, dropout_key: Array | None
) -> dict[str, Float[Array, ""]]:
    """Sum of every loss term over the batch, in fp32."""
    hidden, units = model(batch, dropout_key=dropout_key)
    sums = {"llm": language_loss_sum(model, hidden, batch)}
    if units.boxes is not None:
        assert model.config.box is not None
        valid = _box_valid(model.config, batch)
        sums |= box_loss_sums(units.boxes, batch.boxes, batch.ref_group, valid, model.config.box)
    if units.mask_logits is not None:
        sums |= _mask_sums(model.config, units, batch)
    if units.keypoints is not None:
        assert model.config.keypoint is not None
        keypoints, valid = _keypoint_targets(model.config, batch)
        sums |= keypoint_loss_sums(
            units.keypoints, batch.boxes, keypoints, batch.ref_group, valid, model.config.keypoint
        )
    if units.depth is not None:
        sums |= _depth_sums(model.config, units, batch)
    return sums


def language_loss_sum(
    model: RefVLM, hidden: Float[Array, "B S D"], batch: Batch
) -> Float[Array, ""]:
    """Cross entropy of the next supervised token, summed, in fp32."""
    targets, head = _next_tokens(batch), model.llama.head()
    config = model.config.llama
    size, tokens = config.logits_chunk, config.vocab_size
    if not 0 < size < hidden.shape[1]:
        return _cross_entropy_sum(hidden, head, targets, tokens)

    def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        states, labels = part
        return total + _cross_entropy_sum(states, head, labels, tokens), None

    # The logits of a chunk are made again in the backward pass rather than kept.
    step = jax.checkpoint(add, policy=jax.checkpoint_policies.nothing_saveable, prevent_cse=False)
    spare = -hidden.shape[1] % size
    hidden = jnp.pad(hidden, ((0, 0), (0, spare), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, spare)), constant_values=IGNORE_ID)
    return jax.lax.scan(step, jnp.float32(0), (_chunks(hidden, size), _chunks(targets, size)))[0]


def _cross_entropy_sum(
    hidden: Float[Array, "B S D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B S"],
    vocab_size: int,
) -> Float[Array, ""]:
    logits = vocabulary_logits(hidden, head, vocab_size)
    safe = jnp.where(targets == IGNORE_ID, 0, targets)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, safe)
    return jnp.where(targets == IGNORE_ID, 0.0, loss).sum()


def _chunks(x: Array, size: int) -> Array:
    """[B, n size, ...] as [n, B, size, ...]."""
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def _next_tokens(batch: Batch) -> Int[Array, "B S"]:
    """Label of the following position, IGNORE_ID at the end and across packed dialogues."""
    same = batch.segment_ids[:, 1:] == batch.segment_ids[:, :-1]
    same &= batch.dialog_ids[:, 1:] == batch.dialog_ids[:, :-1]
    shifted = jnp.where(same, batch.labels[:, 1:], IGNORE_ID)
    return jnp.pad(shifted, ((0, 0), (0, 1)), constant_values=IGNORE_ID)


def _decoded(config: RefVLMConfig, batch: Batch, unit: Unit, queries: int) -> Bool[Array, "B R"]:
    """References of a unit that have a query slot of its decoder."""
    images, valid = batch.image_valid.shape[1], batch.ref_valid
    if config.adapter is not None:
        valid = adapted_references(batch.ref_group, batch.ref_image, valid, config.adapter)
    table = slots(valid, batch.ref_unit, batch.ref_image, unit, images, queries)
    return table.slot >= 0


def _box_valid(config: RefVLMConfig, batch: Batch) -> Array:
    assert config.box is not None
    return _decoded(config, batch, Unit.BOX, config.box.num_queries)


def _owners(
    slot: Int[Array, "B R"], decoded: Bool[Array, "B R"], count: int
) -> tuple[Int[Array, "B T"], Bool[Array, "B T"]]:
    """Reference that owns each of `count` target slots, and whether a decoder slot answers it."""
    owns = slot[:, None, :] == jnp.arange(count)[None, :, None]
    owns &= decoded[:, None, :]
    return owns.argmax(-1), owns.any(-1)


def _mask_targets(config: RefVLMConfig, batch: Batch) -> tuple[Int[Array, "B Rm"], Array]:
    assert config.mask_unit is not None
    decoded = _decoded(config, batch, Unit.MASK, config.mask_unit.num_queries)
    return _owners(batch.mask_slot, decoded, batch.masks.shape[1])


def _depth_targets(config: RefVLMConfig, batch: Batch) -> tuple[Int[Array, "B Rd"], Array]:
    assert config.depth is not None
    decoded = _decoded(config, batch, Unit.DEPTH, config.depth.num_queries)
    return _owners(batch.depth_slot, decoded, batch.depth.shape[1])


def _keypoint_targets(
    config: RefVLMConfig, batch: Batch
) -> tuple[Float[Array, "B R K 3"], Bool[Array, "B R"]]:
    """Body points of every reference, and whether it has some and a decoder slot answers it."""
    assert config.keypoint is not None
    slot = jnp.asarray(batch.keypoint_slot)
    valid = _decoded(config, batch, Unit.KEYPOINT, config.keypoint.num_queries) & (slot >= 0)
    keypoints = jnp.asarray(batch.keypoints)
    if not keypoints.shape[1]:
        raise ValueError(
            "the batch has no keypoint slots for the model's keypoint unit; set data.kpt_refs"
        )
    place = jnp.maximum(slot, 0)[..., None, None]
    return jnp.take_along_axis(keypoints, place, axis=1), valid


def _of_owners(
    per_slot: Float[Array, "B I Q y x"],
    table: SlotMap,
    owner: Int[Array, "B T"],
    images: Int[Array, "B R"],
) -> tuple[Float[Array, "B T y x"], Int[Array, "B T"]]:
    """What the decoder said about the references that own target slots, and their images."""
    image = jnp.take_along_axis(images, owner, axis=1)
    slot = jnp.maximum(jnp.take_along_axis(table.slot, owner, axis=1), 0)
    return jax.vmap(lambda row, i, s: row[i, s])(per_slot, image, slot), image


def _mask_sums(
    config: RefVLMConfig, units: UnitOutputs, batch: Batch
) -> dict[str, Float[Array, ""]]:
    unit = config.mask_unit
    assert unit is not None and units.mask_logits is not None and units.mask_slots is not None
    owner, valid = _mask_targets(config, batch)
    size, image_size = batch.masks.shape[-1], batch.images.shape[2]
    logits, image = _of_owners(units.mask_logits, units.mask_slots, owner, batch.ref_image)
    pixels = pixel_mask(batch.pixel_box, size, image_size)
    pixels = jax.vmap(lambda row, i: row[i])(pixels, image)
    group = jnp.where(valid, jnp.take_along_axis(batch.ref_group, owner, axis=1), NO_GROUP)
    return mask_loss_sums(logits, batch.masks, group, valid, pixels, unit)


def _depth_sums(
    config: RefVLMConfig, units: UnitOutputs, batch: Batch
) -> dict[str, Float[Array, ""]]:
    assert config.depth is not None and units.depth is not None and units.depth_slots is not None
    owner, valid = _depth_targets(config, batch)
    depth, _ = _of_owners(units.depth, units.depth_slots, owner, batch.ref_image)
    target = batch.depth.astype(jnp.float32)
    relative = jnp.asarray(batch.depth_relative)
    return depth_loss_sums(depth, target, target > 0, relative, valid, config.depth)
