"""The forward pass of a bundle, part by part in the order of the reference, with every recorded number.

It runs the modules themselves on the reference's ragged inputs, so that what it reports names the
module at fault. Shape legend: see `sequences`; `Q` query slots, `D` width of the language model.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from refvlm_jax.batch import TEXT
from refvlm_jax.ckpt.convert.tensors import ConvertError
from refvlm_jax.ckpt.convert.verify.sequences import (
    IMAGE_MARK,
    References,
    Sequences,
    expand,
    references,
)
from refvlm_jax.ckpt.convert.whole import WholeConfig
from refvlm_jax.config.model import BoxUnitConfig, MaskUnitConfig, SamUnitConfig
from refvlm_jax.models.clip_vit import VisionFeatures
from refvlm_jax.models.placement import place
from refvlm_jax.models.units.features import with_tower
from refvlm_jax.models.units.keypoint_losses import keypoint_loss_sums, keypoint_loss_weights
from refvlm_jax.models.units.losses import box_loss_sums, mask_loss_sums
from refvlm_jax.trp.tokens import IGNORE_ID, PHRASE_CLOSE, PHRASE_OPEN

Arrays = dict[str, Any]
_UNITS = {"box": ("box",), "mask": ("mask",), "sam": ("mask",), "keypoint": ("box", "keypoint")}
"""Decoder -> units of the samples it answers; the released keypoint data calls its unit box."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A bundle's inputs, prepared on the host."""

    config: Mapping[str, Any]
    whole: WholeConfig
    arrays: Mapping[str, np.ndarray]
    sequences: Sequences
    refs: References

    @property
    def rows(self) -> int:
        """Samples."""
        return len(self.sequences.tokens)

    @property
    def pointed(self) -> int:
        """Region prompts of the sample that has most; one, of no pixels, where none has any."""
        return max(1, max(self.sequences.prompts))

    def prompt_masks(self) -> np.ndarray:
        """float[B, P, y, x], zeros where a sample has fewer prompts."""
        counts, grid = self.sequences.prompts, self.whole.vision.grid
        given = self.arrays.get("vpt_masks")
        if given is None:
            given = np.zeros((0, grid, grid), np.float32)
        if not sum(counts):
            return np.zeros((self.rows, 1, grid, grid), np.float32)
        if len(given) != sum(counts):
            raise ConvertError(
                f"in.vpt_masks holds {len(given)} prompts, but in.input_ids asks for {sum(counts)}; "
                "record the bundle again"
            )
        masks = np.zeros((self.rows, self.pointed, *given.shape[1:]), np.float32)
        for b, stop in enumerate(np.cumsum(counts)):
            masks[b, : counts[b]] = given[stop - counts[b] : stop]
        return masks


def prepare(
    config: Mapping[str, Any], whole: WholeConfig, arrays: Mapping[str, np.ndarray]
) -> Inputs:
    """Expands and checks what was recorded under `in.*`.

    Raises:
      ConvertError: an input is missing or contradicts another.
    """
    for name in ("input_ids", "pixel_values"):
        if name not in arrays:
            raise ConvertError(f"in.{name} is missing; record the bundle again")
    tokens = whole.region_prompts.tokens if whole.region_prompts else 0
    sequences = expand(config, arrays, whole.vision.tokens, tokens)
    return Inputs(config, whole, arrays, sequences, references(config, sequences))


def forward(models: Mapping[str, Any], given: Inputs) -> tuple[Arrays, Arrays]:
    """(`out.*` by name, unweighted costs by the reference's name); traceable."""
    s = given.sequences
    outs: Arrays = {"mm_labels": s.labels, "mm_attention_mask": s.real, "mm_token_masks": s.marks}
    costs: Arrays = {}
    features = _vision(models, given, outs)
    embeddings = _embeddings(models, given, features, outs)
    hidden = _language(models, given, embeddings, outs, costs)
    features, queries, held = _adapted(models, given, features, hidden, outs)
    if "sam" in models:
        features = _with_sam(models["sam"], given, features)
    units = {"box": _box, "mask": _mask, "sam": _mask, "keypoint": _keypoint}
    for name, decode in units.items():
        if name in models:
            decode(models[name], given, features, _slots(queries, models[name]), held, outs, costs)
    return outs, costs


def _vision(models: Mapping[str, Any], given: Inputs, outs: Arrays) -> VisionFeatures:
    images = jnp.asarray(given.arrays["pixel_values"].transpose(0, 2, 3, 1))
    _, states = models["vision"].hidden_states(images)
    outs |= {f"clip_hidden_{k}": state for k, state in enumerate(states)}
    features = models["vision"](images)
    tower = _tower_maps(models, given)
    return features if tower is None else with_tower(features, tower)


def _tower_maps(models: Mapping[str, Any], given: Inputs) -> list[Any] | None:
    recorded = sorted(
        (k for k in given.arrays if k.startswith("tower_hidden_")),
        key=lambda k: int(k.rpartition("_")[2]),
    )
    if recorded:
        return [jnp.asarray(given.arrays[k].transpose(0, 2, 3, 1)) for k in recorded]
    if "tower" not in models:
        return None
    if "pixel_values_tower" not in given.arrays:
        raise ConvertError("in.pixel_values_tower is missing, which the visual tower reads")
    return list(
        models["tower"](jnp.asarray(given.arrays["pixel_values_tower"].transpose(0, 2, 3, 1)))
    )


def _with_sam(unit: Any, given: Inputs, features: VisionFeatures) -> VisionFeatures:
    """SAM's own view of the picture as the last map."""
    if "pixel_values_tower" not in given.arrays:
        raise ConvertError("in.pixel_values_tower is missing, which SAM reads")
    pictures = jnp.asarray(given.arrays["pixel_values_tower"].transpose(0, 2, 3, 1))
    return VisionFeatures(features.tokens, (*features.maps, unit.encode(pictures)))


def _embeddings(
    models: Mapping[str, Any], given: Inputs, features: VisionFeatures, outs: Arrays
) -> Any:
    s, tokens = given.sequences, features.tokens
    count, patches = given.rows, features.tokens.shape[1]
    config = given.whole.region_prompts
    separate = prompts = None
    if "region_prompts" in models:
        assert config is not None
        prompts = models["region_prompts"](tokens, jnp.asarray(given.prompt_masks()))
        outs["vpt_feats"] = prompts
        if config.projects:
            separate = prompts.reshape(count, -1, prompts.shape[-1])
        else:
            tokens = jnp.concatenate([tokens, prompts.reshape(count, -1, tokens.shape[-1])], axis=1)
    projected = models["projector"](tokens)
    outs["projector_out"] = projected
    pictures = projected[:, :patches].reshape(1, -1, projected.shape[-1])
    own = projected[:, patches:] if separate is None else separate
    visual = jnp.concatenate([jnp.repeat(pictures, count, axis=0), own], axis=1)
    text = models["llama"].embed(jnp.asarray(s.tokens))
    found = place(text, visual, jnp.asarray(s.visual_index))
    found = jnp.where(jnp.asarray(s.real)[..., None], found, 0)
    outs["inputs_embeds"] = found
    return found


def _language(
    models: Mapping[str, Any], given: Inputs, embeddings: Any, outs: Arrays, costs: Arrays
) -> Any:
    s, llama = given.sequences, models["llama"]
    segments = jnp.asarray(s.real, jnp.int32)
    hidden = llama(embeddings, jnp.asarray(s.positions), segments).hidden
    logits = llama.logits(hidden)
    outs |= {"llm_last_hidden": hidden, "logits": logits}
    targets = np.pad(s.labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORE_ID)
    valid = targets != IGNORE_ID
    each = optax.softmax_cross_entropy_with_integer_labels(logits, np.where(valid, targets, 0))
    costs["llm"] = jnp.where(valid, each, 0.0).sum() / max(1, int(valid.sum()))
    return hidden


def _adapted(
    models: Mapping[str, Any], given: Inputs, features: VisionFeatures, hidden: Any, outs: Arrays
) -> tuple[VisionFeatures, Any, np.ndarray]:
    """Features, query states [B, R, D] and which of them the reference holds as queries."""
    refs = given.refs
    taken = jnp.take_along_axis(hidden, jnp.asarray(refs.pos)[..., None], axis=1)
    taken = jnp.where(refs.valid[..., None], taken, 0)
    if "adapter" not in models:
        return features, taken, refs.valid
    from refvlm_jax.models.adapter import adapter_table, patch_states, phrase_spans

    adapter, s = models["adapter"], given.sequences
    ids = given.config["special_token_ids"]
    where = (jnp.asarray(refs.pos), jnp.asarray(refs.group), jnp.asarray(refs.valid))
    spans = phrase_spans(
        jnp.asarray(s.tokens), *where, open_id=ids[PHRASE_OPEN], close_id=ids[PHRASE_CLOSE]
    )
    image = jnp.zeros(refs.pos.shape, jnp.int32)
    runs = dataclasses.replace(adapter.config, groups=max(1, int(refs.group.max()) + 1))
    table = adapter_table(spans, where[0], where[1], image, where[2], runs)
    seen = s.marks == IMAGE_MARK
    index = np.where(seen, np.cumsum(seen, axis=1) - 1, TEXT)
    patches = patch_states(hidden, jnp.asarray(index), 1, given.whole.vision.tokens)
    adapted = adapter(hidden, patches, table)
    count = max(1, int(refs.valid.sum(1).max()))
    outs["adapter_image_embeddings"] = adapted.maps.reshape(given.rows, -1, hidden.shape[-1])
    outs["adapter_ref_hidden_states"] = adapted.states[:, :count]
    outs["adapter_ref_mask"] = adapted.valid[:, :count]
    changed = VisionFeatures(features.tokens, (*features.maps[:-1], adapted.maps))
    # Rows up to the longest sample's hold zero queries before the projection, later ones after it.
    return (
        changed,
        adapted.states,
        np.broadcast_to(np.arange(refs.pos.shape[1]) < count, refs.pos.shape),
    )


def _slots(queries: Any, unit: Any) -> Any:
    """[B, Q, D]: the first references, zeros beyond them."""
    return _pad(queries, unit.config.num_queries)


def _pad(x: Any, count: int) -> Any:
    x = x[:, :count]
    return jnp.pad(x, ((0, 0), (0, count - x.shape[1])) + ((0, 0),) * (x.ndim - 2))


class Answered:
    """What one decoder answers: its slots' validity and groups, and targets, as [B, Q, ...]."""

    def __init__(
        self,
        valid: np.ndarray,
        group: np.ndarray,
        targets: Callable[[str], np.ndarray | None],
    ):
        self.valid, self.targets = valid, targets
        self.group = np.where(valid, group, -1)

    @classmethod
    def of(cls, given: Inputs, unit: str, count: int) -> "Answered":
        """Of the whole model's decoder `unit` with `count` slots."""
        refs, names = given.refs, _UNITS[unit]

        def targets(what: str) -> np.ndarray | None:
            values = given.arrays.get(what)
            return None if values is None else _pad_host(refs.targets(values, names, what), count)

        valid = _pad_host(refs.valid, count) & refs.of(names)[:, None]
        return cls(valid, _pad_host(refs.group, count), targets)

    @classmethod
    def listed(cls, valid: np.ndarray, seqs: Any, arrays: Mapping[str, np.ndarray]) -> "Answered":
        """Of a decoder that was recorded alone: slots as given, targets over the valid ones."""
        group = np.zeros(valid.shape, np.int32)
        for b, groups in enumerate(seqs or []):
            numbers = [g for g, seq in enumerate(groups or []) for _ in seq]
            group[b, : len(numbers)] = numbers[: valid.shape[1]]

        def targets(what: str) -> np.ndarray | None:
            if what not in arrays:
                return None
            found = np.zeros((*valid.shape, *arrays[what].shape[1:]), arrays[what].dtype)
            found[np.nonzero(valid)] = arrays[what]
            return found

        return cls(valid, group, targets)

    @property
    def number(self) -> int:
        """Instances the losses are averaged over."""
        return max(1, int(self.valid.sum()))

    def rows(self, x: Any) -> Any:
        """The valid slots of every sample, one after the other."""
        return x[np.nonzero(self.valid)]


def _pad_host(x: np.ndarray, count: int) -> np.ndarray:
    x = x[:, :count]
    return np.pad(x, ((0, 0), (0, count - x.shape[1])) + ((0, 0),) * (x.ndim - 2))


def _box(
    unit: Any, given: Inputs, features: Any, queries: Any, held: Any, outs: Arrays, costs: Arrays
) -> None:
    config: BoxUnitConfig = unit.config
    own, held = Answered.of(given, "box", config.num_queries), _pad_host(held, config.num_queries)
    states = unit.states(queries, jnp.asarray(held), features.maps)
    boxes = unit.boxes(states)
    outs |= {"box_ref_hidden_states": states, "box_ref_mask": own.valid}
    outs |= {"box_box_logits": boxes, "box_preds": own.rows(boxes)}
    targets = own.targets("boxes_cxcywh")
    if targets is None or not own.valid.any():
        outs["box_loss"] = costs["box"] = jnp.zeros(())
        return
    sums = box_loss_sums(
        boxes, jnp.asarray(targets), jnp.asarray(own.group), jnp.asarray(own.valid), config
    )
    cost = config.bbox_weight * sums["box_l1"] + config.giou_weight * sums["box_giou"]
    outs["box_loss"] = costs["box"] = cost / own.number


def _mask(
    unit: Any, given: Inputs, features: Any, queries: Any, held: Any, outs: Arrays, costs: Arrays
) -> None:
    config: MaskUnitConfig | SamUnitConfig = unit.config
    own, held = Answered.of(given, "mask", config.num_queries), _pad_host(held, config.num_queries)
    logits = unit(queries, jnp.asarray(held), features.maps)
    outs |= {"mask_ref_mask": own.valid, "mask_preds": own.rows(logits)}
    outs["mask_loss"] = costs["mask"] = mask_cost(logits, own, given.arrays, config)


def mask_cost(
    logits: Any,
    own: Answered,
    arrays: Mapping[str, np.ndarray],
    config: MaskUnitConfig | SamUnitConfig,
) -> Any:
    """Mean mask loss over the instances, weighted; zero without any."""
    targets = own.targets("masks")
    if targets is None or not own.valid.any():
        return jnp.zeros(())
    pixels = arrays.get("pixel_masks", np.ones((len(logits), *targets.shape[2:])))
    pixels = np.broadcast_to((pixels > 0)[:, None], targets.shape)
    sums = mask_loss_sums(
        logits,
        jnp.asarray(targets),
        jnp.asarray(own.group),
        jnp.asarray(own.valid),
        jnp.asarray(pixels),
        config,
    )
    cost = config.focal_weight * sums["mask_focal"] + config.dice_weight * sums["mask_dice"]
    return cost / own.number


def _keypoint(
    unit: Any, given: Inputs, features: Any, queries: Any, held: Any, outs: Arrays, costs: Arrays
) -> None:
    config = unit.config
    own, held = (
        Answered.of(given, "keypoint", config.num_queries),
        _pad_host(held, config.num_queries),
    )
    found = unit(queries, jnp.asarray(held), features.maps)
    outs |= {"pose_ref_mask": own.valid, "pose_preds": own.rows(found.points)}
    boxes, points = own.targets("boxes_cxcywh"), own.targets("keypoints")
    if boxes is None or points is None or not own.valid.any():
        outs["pose_loss"] = costs["pose"] = jnp.zeros(())
        return
    valid = jnp.asarray(own.valid)
    sums = keypoint_loss_sums(
        found, jnp.asarray(boxes), jnp.asarray(points), jnp.asarray(own.group), valid, config
    )
    weights = keypoint_loss_weights(config)
    cost = sum(weights[name] * value for name, value in sums.items()) / own.number
    outs["pose_loss"] = costs["pose"] = cost


def total_cost(costs: Arrays, config: Mapping[str, Any]) -> Any:
    """The reference's `loss`."""
    weights = config.get("loss_coefficient") or {}
    return sum(float(weights.get(name, 1.0)) * cost for name, cost in costs.items())


def compared_positions(name: str, given: Inputs) -> np.ndarray | None:
    """Where the recorded numbers of an output mean something; None: everywhere.

    In the padding the language model's outputs are what its empty rows happen to attend to.
    """
    return given.sequences.real if name in ("llm_last_hidden", "logits") else None
