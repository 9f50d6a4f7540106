"""The composed REF-VLM: pictures, prompts and text in; text, boxes, masks, joints and depth out.

Vision transformer -> region prompts and projector -> one gather -> Llama -> `<REF>` states -> adapter,
where there is one -> unit decoders, which see the pictures through the vision transformer, the optional
tower or SAM (arXiv 2503.07413, section 3). Shape legend: `B` rows, `S` positions, `I` images a row,
`N` patches, `P` prompts, `T` tokens a prompt, `R` references, `Q` query slots of a decoder, `D` Llama
width.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from refvlm_jax.batch import Batch
from refvlm_jax.config.model import RefVLMConfig
from refvlm_jax.mesh import constrain
from refvlm_jax.models.adapter import TwoWayAdapter, adapter_table, patch_states, phrase_spans
from refvlm_jax.models.clip_vit import ClipViT, VisionFeatures
from refvlm_jax.models.convnext import ConvNext
from refvlm_jax.models.llama import Llama
from refvlm_jax.models.placement import place, prompt_features
from refvlm_jax.models.projector import Projector
from refvlm_jax.models.region_prompts import RegionPromptEncoder
from refvlm_jax.models.units.box import BoxUnit
from refvlm_jax.models.units.depth import DepthUnit
from refvlm_jax.models.units.dispatch import (
    SlotMap,
    gather_queries,
    scatter_back,
    slot_dialogs,
    slots,
)
from refvlm_jax.models.units.features import Map, unit_dims, with_last, with_tower
from refvlm_jax.models.units.keypoint import KeypointOutputs, KeypointUnit
from refvlm_jax.models.units.mask import MaskUnit
from refvlm_jax.models.units.sam import SamUnit
from refvlm_jax.trp.tokens import Unit

_Decoder = BoxUnit | MaskUnit | SamUnit | KeypointUnit | DepthUnit


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RefTable:
    """Where the references of each row are and what they decode to (see `Batch.ref_*`)."""

    pos: Int[Array, "B R"]
    unit: Int[Array, "B R"]
    image: Int[Array, "B R"]
    valid: Bool[Array, "B R"]
    group: Int[Array, "B R"] | None = None
    """Phrase a reference belongs to, which only an adapter reads."""
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
            group=batch.ref_group,
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
    keypoints: KeypointOutputs | None = None
    """In the order of the reference table ([B, R, ...]); zero where the reference has none."""
    depth: Float[Array, "B I Q y x"] | None = None
    """Per decoder slot, see `DepthUnit`; `depth_slots` says which reference owns which."""
    depth_slots: SlotMap | None = None


class RefVLM(nnx.Module):
    """The whole model; every part is chosen by `RefVLMConfig`."""

    def __init__(self, config: RefVLMConfig, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32):
        if config.mask is not None and config.sam is not None:
            raise ValueError("model.mask and model.sam both decode masks; set one of them to None")
        self.config = config
        self.dtype = dtype
        width, query_dim, dims = config.vision.width, config.llama.width, unit_dims(config)
        self.vision = ClipViT(config.vision, rngs)
        prompts, grid = config.region_prompts, config.vision.grid
        self.region_prompts = (
            RegionPromptEncoder(prompts, width, grid, rngs, text_width=query_dim)
            if prompts
            else None
        )
        self.projector = Projector(width, config.llama.width, config.projector_depth, rngs)
        self.llama = Llama(config.llama, rngs)
        self.box = BoxUnit(config.box, dims, query_dim, rngs) if config.box else None
        self.mask = MaskUnit(config.mask, dims, query_dim, rngs) if config.mask else None
        self.keypoint = (
            KeypointUnit(config.keypoint, dims, query_dim, rngs) if config.keypoint else None
        )
        self.depth = DepthUnit(config.depth, dims, query_dim, rngs) if config.depth else None
        self.tower = ConvNext(config.tower, rngs) if config.tower else None
        self.adapter = TwoWayAdapter(config.adapter, query_dim, rngs) if config.adapter else None
        self.sam = SamUnit(config.sam, query_dim, rngs) if config.sam else None

    def encode_images(self, images: Array) -> VisionFeatures:
        """Features of pictures uint8[B, I, Y, X, 3], flattened to B*I."""
        flat = constrain(images.reshape(-1, *images.shape[2:]), "image", None, None, None)
        with jax.named_scope("vision"):
            features = self.vision(flat, dtype=self.dtype)
        if self.tower is not None:
            with jax.named_scope("tower"):
                features = with_tower(features, self.tower(flat, self.dtype))
        if self.sam is not None:
            features = dataclasses.replace(features, sam=self.sam.encode(flat, self.dtype))
        # Every device has encoded its share of the pictures; from here on they go with their rows.
        return jax.tree.map(lambda x: constrain(x, "unit", *(None,) * (x.ndim - 1)), features)

    def visual_tokens(self, features: VisionFeatures, batch: Batch) -> Float[Array, "B N D"]:
        """Projected tokens of every image of a row, then of every region prompt."""
        rows, images = batch.image_valid.shape
        patches = features.tokens.reshape(rows, images, *features.tokens.shape[1:])
        tokens, encoder, ready = (
            patches.reshape(rows, -1, patches.shape[-1]),
            self.region_prompts,
            [],
        )
        if encoder is not None and batch.prompt_masks.shape[1]:
            with jax.named_scope("region_prompts"):
                per_prompt = prompt_features(patches, batch.prompt_image)
                prompts = encoder(per_prompt, batch.prompt_masks)
            prompts = prompts.reshape(rows, -1, prompts.shape[-1])
            if encoder.config.projects:
                ready = [prompts]
            else:
                tokens = jnp.concatenate([tokens, prompts], axis=1)
        with jax.named_scope("projector"):
            tokens = self.projector(tokens)
        return jnp.concatenate([tokens, *ready], axis=1)

    def embed(self, batch: Batch, features: VisionFeatures) -> Float[Array, "B S D"]:
        """Input embeddings of the language model."""
        text = self.llama.embed(batch.tokens).astype(self.dtype)
        embeddings = place(text, self.visual_tokens(features, batch), batch.visual_index)
        return constrain(embeddings, "batch", "length", "act_embed")

    def patch_states(
        self, hidden: Float[Array, "B S D"], batch: Batch
    ) -> Float[Array, "B I N D"] | None:
        """Last hidden states of every patch of a row's images, which only an adapter reads."""
        if self.adapter is None:
            return None
        images, patches = batch.image_valid.shape[1], self.config.vision.tokens
        return patch_states(hidden, batch.visual_index, images, patches)

    def decode_units(
        self,
        hidden: Float[Array, "B S D"],
        refs: RefTable,
        features: VisionFeatures,
        images: int,
        dropout_key: Array | None = None,
        *,
        tokens: Int[Array, "B S"] | None = None,
        patches: Float[Array, "B I N D"] | None = None,
    ) -> UnitOutputs:
        """Runs every unit decoder on the states of its own references.

        Args:
          tokens: ids at the positions of `hidden`; only models with an adapter need them.
          patches: see `patch_states`.
        """
        if self.adapter is not None:
            hidden, refs, features = self._adapt(hidden, refs, features, tokens, patches)

        def run(decoder: _Decoder, unit: Unit, maps: Sequence[Map]) -> tuple[Any, SlotMap]:
            """What a decoder says about its query slots, B * I rows, and who owns the slots."""
            count = decoder.config.num_queries
            table = slots(refs.valid, refs.unit, refs.image, unit, images, count)
            queries = gather_queries(hidden, refs.pos, table)
            valid, dialog = table.valid.reshape(-1, count), slot_dialogs(refs.dialog, table)
            with jax.named_scope(f"{unit.text}_unit"):
                return decoder(queries, valid, maps, dropout_key, dialog=dialog), table

        boxes = mask_logits = mask_slots = keypoints = depth = depth_slots = None
        if self.box is not None:
            boxes = scatter_back(*run(self.box, Unit.BOX, features.maps))
        masks = self.mask or self.sam
        if masks is not None:
            maps = features.maps if features.sam is None else (features.sam,)
            found, mask_slots = run(masks, Unit.MASK, maps)
            mask_logits = found.reshape(-1, images, *found.shape[1:])
        if self.keypoint is not None:
            found, table = run(self.keypoint, Unit.KEYPOINT, features.maps)
            keypoints = jax.tree.map(lambda per_slot: scatter_back(per_slot, table), found)
        if self.depth is not None:
            found, depth_slots = run(self.depth, Unit.DEPTH, features.maps)
            depth = found.reshape(-1, images, *found.shape[1:])
        return UnitOutputs(
            boxes=boxes,
            mask_logits=mask_logits,
            mask_slots=mask_slots,
            keypoints=keypoints,
            depth=depth,
            depth_slots=depth_slots,
        )

    def _adapt(
        self,
        hidden: Float[Array, "B S D"],
        refs: RefTable,
        features: VisionFeatures,
        tokens: Int[Array, "B S"] | None,
        patches: Float[Array, "B I N D"] | None,
    ) -> tuple[Float[Array, "B R D"], RefTable, VisionFeatures]:
        """Adapted states, the references' places among them, and features with the adapted map."""
        assert self.adapter is not None and tokens is not None and patches is not None
        config = self.adapter.config
        open_id, close_id = config.phrase_ids
        pos, group, valid = (jnp.asarray(x) for x in (refs.pos, refs.group, refs.valid))
        with jax.named_scope("adapter"):
            spans = phrase_spans(
                jnp.asarray(tokens), pos, group, valid, open_id=open_id, close_id=close_id
            )
            table = adapter_table(spans, pos, group, refs.image, valid, config)
            adapted = self.adapter(hidden, patches, table)
        own = jnp.broadcast_to(jnp.arange(pos.shape[1], dtype=pos.dtype), pos.shape)
        refs = dataclasses.replace(refs, pos=own, valid=adapted.valid)
        return adapted.states, refs, with_last(features, adapted.maps)

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
        units = self.decode_units(
            hidden,
            RefTable.of(batch),
            features,
            images,
            dropout_key,
            tokens=batch.tokens,
            patches=self.patch_states(hidden, batch),
        )
        return hidden, units
