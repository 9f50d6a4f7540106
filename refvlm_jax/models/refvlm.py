"""The composed REF-VLM: pictures, prompts and text in; text, boxes and masks out.

Vision tower -> region prompts and projector -> one gather -> Llama -> `<REF>` states -> unit decoders
(arXiv 2503.07413, section 3). Shape legend: `B` rows, `S` positions, `I` images a row, `N` patches,
`P` prompts, `T` tokens a prompt, `R` references, `Q` query slots of a decoder, `D` Llama width.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from refvlm_jax.batch import Batch
from refvlm_jax.config.model import RefVLMConfig
from refvlm_jax.mesh import constrain
from refvlm_jax.models.clip_vit import ClipViT, VisionFeatures, feature_dims
from refvlm_jax.models.llama import Llama
from refvlm_jax.models.placement import place, prompt_features
from refvlm_jax.models.projector import Projector
from refvlm_jax.models.region_prompts import RegionPromptEncoder
from refvlm_jax.models.units.box import BoxUnit
from refvlm_jax.models.units.dispatch import (
    SlotMap,
    gather_queries,
    scatter_back,
    slot_dialogs,
    slots,
)
from refvlm_jax.models.units.mask import MaskUnit
from refvlm_jax.trp.tokens import Unit


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RefTable:
    """Where the references of each row are and what they decode to (see `Batch.ref_*`)."""

    pos: Int[Array, "B R"]
    unit: Int[Array, "B R"]
    image: Int[Array, "B R"]
    valid: Bool[Array, "B R"]
    dialog: Int[Array, "B R"] | None = None
    """Dialogue a reference belongs to (`Batch.dialog_ids`); None: all of a row belong together."""

    @classmethod
    def of(cls, batch: Batch) -> "RefTable":
        """The references of a training batch."""
        return cls(
            pos=batch.ref_pos,
            unit=batch.ref_unit,
            image=batch.ref_image,
            valid=batch.ref_valid,
            dialog=jnp.take_along_axis(jnp.asarray(batch.dialog_ids), batch.ref_pos, axis=1),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitOutputs:
    """What the unit decoders say about each reference; None for a unit the model lacks."""

    boxes: Float[Array, "B R 4"] | None
    """(cx, cy, w, h) / padded side; zero where the reference is no box."""
    mask_logits: Float[Array, "B I Q y x"] | None
    """Per decoder slot: `mask_slots` says which reference owns which."""
    mask_slots: SlotMap | None


def _scale_kernels(part: nnx.Module, gain: float) -> None:
    for path, variable in nnx.to_flat_state(nnx.state(part, nnx.Param)):
        if path[-1] == "kernel":
            variable[...] = variable[...] * gain


class RefVLM(nnx.Module):
    """The whole model; every part is chosen by `RefVLMConfig`."""

    def __init__(self, config: RefVLMConfig, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32):
        self.config = config
        self.dtype = dtype
        width, dims = config.vision.width, feature_dims(config.vision)
        self.vision = ClipViT(config.vision, rngs)
        self.region_prompts = (
            RegionPromptEncoder(config.region_prompts, width, config.vision.grid, rngs)
            if config.region_prompts
            else None
        )
        self.projector = Projector(width, config.llama.width, config.projector_depth, rngs)
        self.llama = Llama(config.llama, rngs)
        query_dim = config.llama.width
        self.box = BoxUnit(config.box, dims, query_dim, rngs) if config.box else None
        self.mask = MaskUnit(config.mask, dims, query_dim, rngs) if config.mask else None
        for part in (self.vision, self.region_prompts, self.projector):
            if part is not None and config.kernel_gain != 1.0:
                _scale_kernels(part, config.kernel_gain)

    def encode_images(self, images: Array) -> VisionFeatures:
        """Features of pictures uint8[B, I, Y, X, 3], flattened to B*I."""
        flat = constrain(images.reshape(-1, *images.shape[2:]), "image", None, None, None)
        with jax.named_scope("vision"):
            return self.vision(flat, dtype=self.dtype)

    def visual_tokens(self, features: VisionFeatures, batch: Batch) -> Float[Array, "B N D"]:
        """Projected tokens of every image of a row, then of every region prompt."""
        rows, images = batch.image_valid.shape
        patches = features.tokens.reshape(rows, images, *features.tokens.shape[1:])
        tokens = patches.reshape(rows, -1, patches.shape[-1])
        if self.region_prompts is not None and batch.prompt_masks.shape[1]:
            with jax.named_scope("region_prompts"):
                per_prompt = prompt_features(patches, batch.prompt_image)
                prompts = self.region_prompts(per_prompt, batch.prompt_masks)
            tokens = jnp.concatenate([tokens, prompts.reshape(rows, -1, prompts.shape[-1])], axis=1)
        with jax.named_scope("projector"):
            return self.projector(tokens)

    def embed(self, batch: Batch, features: VisionFeatures) -> Float[Array, "B S D"]:
        """Input embeddings of the language model."""
        text = self.llama.embed(batch.tokens).astype(self.dtype)
        embeddings = place(text, self.visual_tokens(features, batch), batch.visual_index)
        return constrain(embeddings, "batch", "length", "act_embed")

    def decode_units(
        self,
        hidden: Float[Array, "B S D"],
        refs: RefTable,
        features: VisionFeatures,
        images: int,
        dropout_key: Array | None = None,
    ) -> UnitOutputs:
        """Runs every unit decoder on the states of its own references."""
        boxes = mask_logits = mask_slots = None
        if self.box is not None:
            queries, valid, table = self._queries(hidden, refs, Unit.BOX, images)
            with jax.named_scope("box_unit"):
                found = self.box(
                    queries,
                    valid,
                    features.maps,
                    dropout_key,
                    dialog=slot_dialogs(refs.dialog, table),
                )
            boxes = scatter_back(found, table)
        if self.mask is not None:
            queries, valid, mask_slots = self._queries(hidden, refs, Unit.MASK, images)
            with jax.named_scope("mask_unit"):
                logits = self.mask(
                    queries,
                    valid,
                    features.maps,
                    dropout_key,
                    dialog=slot_dialogs(refs.dialog, mask_slots),
                )
            mask_logits = logits.reshape(-1, images, *logits.shape[1:])
        return UnitOutputs(boxes=boxes, mask_logits=mask_logits, mask_slots=mask_slots)

    def _queries(
        self, hidden: Float[Array, "B S D"], refs: RefTable, unit: Unit, images: int
    ) -> tuple[Array, Array, SlotMap]:
        decoder = self.config.box if unit is Unit.BOX else self.config.mask
        assert decoder is not None
        table = slots(refs.valid, refs.unit, refs.image, unit, images, decoder.num_queries)
        queries = gather_queries(hidden, refs.pos, table)
        return queries, table.valid.reshape(-1, decoder.num_queries), table

    def __call__(
        self, batch: Batch, *, dropout_key: Array | None = None
    ) -> tuple[Float[Array, "B S D"], UnitOutputs]:
        """Last hidden states (after the final norm) and the unit decoders' outputs."""
        features = self.encode_images(batch.images)
        embeddings = self.embed(batch, features)
        with jax.named_scope("llama"):
            hidden = self.llama(
                embeddings, batch.positions, batch.segment_ids, batch.dialog_ids
            ).hidden
        images = batch.image_valid.shape[1]
        units = self.decode_units(hidden, RefTable.of(batch), features, images, dropout_key)
        return hidden, units
