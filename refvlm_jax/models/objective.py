"""The training objective of REF-VLM: un-normalised sums per term, and what to divide them by.

Sums and counts are separate so that accumulation over micro-batches and sharding over devices give
exactly the loss of the whole global batch (the reference averages per device).
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from refvlm_jax.batch import NO_GROUP, Batch
from refvlm_jax.config.model import RefVLMConfig
from refvlm_jax.models.placement import pixel_mask
from refvlm_jax.models.refvlm import RefVLM, UnitOutputs
from refvlm_jax.models.units.dispatch import slots
from refvlm_jax.models.units.losses import box_loss_sums, mask_loss_sums
from refvlm_jax.trp.tokens import IGNORE_ID, Unit


def loss_weights(
    config: RefVLMConfig, *, llm: float = 1.0, box: float = 1.0, mask: float = 1.0
) -> dict[str, float]:
    """Weight of every loss term from the decoders' coefficients and one coefficient per part."""
    weights = {"llm": llm}
    if config.box:
        weights["box_l1"] = box * config.box.bbox_weight
        weights["box_giou"] = box * config.box.giou_weight
    if config.mask:
        weights["mask_focal"] = mask * config.mask.focal_weight
        weights["mask_dice"] = mask * config.mask.dice_weight
    return weights


def loss_counts(config: RefVLMConfig, batch: Batch) -> dict[str, Float[Array, ""]]:
    """What each term is averaged over: supervised tokens, decoded boxes, decoded masks."""
    counts = {"llm": (_next_tokens(batch) != IGNORE_ID).sum().astype(jnp.float32)}
    if config.box:
        boxes = _box_valid(config, batch).sum().astype(jnp.float32)
        counts |= {"box_l1": boxes, "box_giou": boxes}
    if config.mask:
        masks = _mask_targets(config, batch)[1].sum().astype(jnp.float32)
        counts |= {"mask_focal": masks, "mask_dice": masks}
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
    return sums


def language_loss_sum(
    model: RefVLM, hidden: Float[Array, "B S D"], batch: Batch
) -> Float[Array, ""]:
    """Cross entropy of the next supervised token, summed, in fp32."""
    targets = _next_tokens(batch)
    logits = model.llama.logits(hidden)
    safe = jnp.where(targets == IGNORE_ID, 0, targets)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, safe)
    return jnp.where(targets == IGNORE_ID, 0.0, loss).sum()


def _next_tokens(batch: Batch) -> Int[Array, "B S"]:
    """Label of the following position, IGNORE_ID at the end and across packed dialogues."""
    same = batch.segment_ids[:, 1:] == batch.segment_ids[:, :-1]
    same &= batch.dialog_ids[:, 1:] == batch.dialog_ids[:, :-1]
    shifted = jnp.where(same, batch.labels[:, 1:], IGNORE_ID)
    return jnp.pad(shifted, ((0, 0), (0, 1)), constant_values=IGNORE_ID)


def _box_valid(config: RefVLMConfig, batch: Batch) -> Array:
    assert config.box is not None
    images = batch.image_valid.shape[1]
    table = slots(
        batch.ref_valid, batch.ref_unit, batch.ref_image, Unit.BOX, images, config.box.num_queries
    )
    return table.slot >= 0


def _mask_targets(config: RefVLMConfig, batch: Batch) -> tuple[Int[Array, "B Rm"], Array]:
    """Reference that owns each mask target slot, and whether a decoder slot answers it."""
    assert config.mask is not None
    images, rows = batch.image_valid.shape[1], batch.masks.shape[1]
    table = slots(
        batch.ref_valid, batch.ref_unit, batch.ref_image, Unit.MASK, images, config.mask.num_queries
    )
    owns = batch.mask_slot[:, None, :] == jnp.arange(rows)[None, :, None]
    owns &= (table.slot >= 0)[:, None, :]
    return owns.argmax(-1), owns.any(-1)


def _mask_sums(
    config: RefVLMConfig, units: UnitOutputs, batch: Batch
) -> dict[str, Float[Array, ""]]:
    assert (
        config.mask is not None and units.mask_logits is not None and units.mask_slots is not None
    )
    owner, valid = _mask_targets(config, batch)
    size, image_size = batch.masks.shape[-1], batch.images.shape[2]
    take = lambda values: jnp.take_along_axis(values, owner, axis=1)  # noqa: E731
    image, slot = take(batch.ref_image), jnp.maximum(take(units.mask_slots.slot), 0)
    logits = jax.vmap(lambda row, i, s: row[i, s])(units.mask_logits, image, slot)
    pixels = pixel_mask(batch.pixel_box, size, image_size)
    pixels = jax.vmap(lambda row, i: row[i])(pixels, image)
    group = jnp.where(valid, take(batch.ref_group), NO_GROUP)
    return mask_loss_sums(logits, batch.masks, group, valid, pixels, config.mask)
