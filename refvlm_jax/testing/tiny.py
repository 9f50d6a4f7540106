"""The smallest REF-VLM that has every part, and random batches for it. Nothing here is trained."""

import dataclasses

import numpy as np

from refvlm_jax.batch import NO_GROUP, Batch, BatchSpec, empty_row
from refvlm_jax.config.model import (
    AdapterConfig,
    BoxUnitConfig,
    ConvNextConfig,
    DepthUnitConfig,
    KeypointUnitConfig,
    LlamaConfig,
    MaskUnitConfig,
    RefVLMConfig,
    RegionPromptConfig,
    SamEncoderConfig,
    SamUnitConfig,
    VisionConfig,
)
from refvlm_jax.trp.tokens import IGNORE_ID, Unit


def tiny_config() -> RefVLMConfig:
    """A few thousand parameters, every module present."""
    return RefVLMConfig(
        vision=VisionConfig(
            image_size=32,
            patch_size=8,
            width=32,
            layers=2,
            heads=2,
            mlp_dim=32,
            feature_layer=-1,
            class_token=False,
            activation="gelu",
            stem="conv",
            stem_channels=(8, 16),
            position="sine",
        ),
        region_prompts=RegionPromptConfig(num_patches=4, pooling="raster"),
        llama=LlamaConfig(
            vocab_size=64,
            width=32,
            layers=2,
            heads=4,
            kv_heads=2,
            head_dim=8,
            mlp_dim=48,
            remat="full",
        ),
        box=BoxUnitConfig(
            num_queries=6, features=(1, 3), width=16, layers=2, heads=2, mlp_dim=32, dropout=0.0
        ),
        mask=MaskUnitConfig(
            num_queries=4,
            features=(1, 3),
            width=16,
            layers=2,
            heads=2,
            mlp_dim=32,
            norm_groups=4,
            dropout=0.0,
        ),
        keypoint=KeypointUnitConfig(
            box=BoxUnitConfig(
                num_queries=3, features=(1, 3), width=16, layers=1, heads=2, mlp_dim=32, dropout=0.0
            ),
            features=(1, 3),
            width=16,
            layers=1,
            heads=2,
            mlp_dim=32,
            dropout=0.0,
            sigmas=(0.05, 0.1, 0.1, 0.2),
        ),
        depth=DepthUnitConfig(
            features=(1, 3),
            width=16,
            layers=1,
            heads=2,
            mlp_dim=32,
            norm_groups=4,
            dropout=0.0,
            bins=8,
            max_depth=20.0,
        ),
    )


def whole_config() -> RefVLMConfig:
    """The same with what is optional: a visual tower, the adapter, and SAM for masks."""
    plain = tiny_config()
    assert plain.box is not None and plain.keypoint is not None and plain.depth is not None
    features = (0, 2)
    return dataclasses.replace(
        plain,
        tower=ConvNextConfig(image_size=48, depths=(1, 1), dims=(8, 12), layer_scale=1.0),
        adapter=AdapterConfig(
            groups=3,
            phrase_length=4,
            ref_length=2,
            phrase_ids=(5, 6),
            projection_dim=24,
            layers=1,
            heads=2,
            mlp_dim=24,
        ),
        box=dataclasses.replace(plain.box, features=features, empty_queries="zero"),
        mask=None,
        sam=SamUnitConfig(
            num_queries=4,
            encoder=SamEncoderConfig(
                image_size=40,
                patch_size=8,
                width=8,
                layers=2,
                heads=2,
                mlp_dim=16,
                global_layers=(1,),
                window=3,
                out_width=16,
                attention_block=0,
            ),
            layers=1,
            heads=2,
            mlp_dim=16,
            iou_hidden=8,
            mask_prompt_channels=8,
            chunk=2,
        ),
        keypoint=dataclasses.replace(
            plain.keypoint,
            box=dataclasses.replace(plain.keypoint.box, features=features),
            features=features,
        ),
        depth=dataclasses.replace(plain.depth, features=features),
    )


def tiny_spec(config: RefVLMConfig, seq_len: int = 48) -> BatchSpec:
    """Batch sizes that fit `tiny_config`."""
    assert config.region_prompts is not None
    points = config.keypoint.points if config.keypoint else 0
    return BatchSpec(
        seq_len=seq_len,
        image_size=config.vision.image_size,
        image_tokens=config.vision.tokens,
        prompts=2,
        prompt_tokens=config.region_prompts.tokens,
        refs=6,
        mask_refs=4,
        mask_size=config.vision.image_size,
        kpt_refs=2 if config.keypoint else 0,
        kpt_points=points,
        depth_refs=1 if config.depth else 0,
        depth_size=config.vision.image_size if config.depth else 0,
    )


def random_batch(spec: BatchSpec, rows: int, seed: int, vocab: int = 64) -> Batch:
    """A batch of `rows` random rows (see `random_row`)."""
    made = [random_row(spec, np.random.default_rng([seed, r]), r, vocab) for r in range(rows)]
    return Batch.from_dict({name: np.stack([row[name] for row in made]) for name in made[0]})


def random_row(
    spec: BatchSpec, rng: np.random.Generator, sample_id: int, vocab: int
) -> dict[str, np.ndarray]:
    """A row with a picture, up to two prompts, text, and references of every unit in groups."""
    row = empty_row(spec)
    prompts = int(rng.integers(0, spec.prompts + 1))
    visual = spec.image_tokens + prompts * spec.prompt_tokens
    length = int(rng.integers(visual + 8, spec.seq_len + 1))
    start = 2 + visual
    row["tokens"][:length] = rng.integers(1, vocab, length)
    row["visual_index"][2:start] = np.arange(visual)
    row["tokens"][2:start] = 0
    row["labels"][start + 2 : length] = row["tokens"][start + 2 : length]
    row["labels"][:start] = IGNORE_ID
    row["positions"][:length] = np.arange(length)
    row["segment_ids"][:length] = 1
    row["images"][:] = rng.integers(0, 256, row["images"].shape)
    row["image_valid"][:] = True
    row["pixel_box"][:] = (0, 4, spec.image_size, spec.image_size - 4)
    row["prompt_valid"][:prompts] = True
    for p in range(prompts):
        x, y = rng.integers(0, spec.image_size // 2, 2)
        row["prompt_masks"][p, y : y + 12, x : x + 12] = 1
    row["sample_id"][...] = sample_id
    _random_refs(row, spec, rng, np.arange(start + 3, length))
    return row


def _random_refs(
    row: dict[str, np.ndarray], spec: BatchSpec, rng: np.random.Generator, places: np.ndarray
) -> None:
    count = int(rng.integers(0, min(spec.refs, len(places)) + 1))
    row["ref_pos"][:count] = np.sort(rng.choice(places, count, replace=False))
    row["ref_valid"][:count] = True
    row["ref_group"][:count] = np.sort(rng.integers(0, 5, count))
    row["ref_group"][count:] = NO_GROUP
    used = dict.fromkeys(_SLOTS, 0)
    for k in range(count):
        unit = _UNIT_OF_GROUP.get(int(row["ref_group"][k]), Unit.BOX)
        slot, room = used.get(unit, 0), _room(spec).get(unit, 0)
        unit = unit if slot < room else Unit.BOX
        row["ref_unit"][k] = int(unit)
        if unit is not Unit.BOX:
            row[_SLOTS[unit]][k] = slot
            used[unit] += 1
        if unit in (Unit.BOX, Unit.KEYPOINT):
            row["boxes"][k] = rng.uniform((0.2, 0.2, 0.1, 0.1), (0.8, 0.8, 0.3, 0.3))
        _random_target(row, spec, rng, unit, slot)


_UNIT_OF_GROUP = {1: Unit.MASK, 3: Unit.KEYPOINT, 4: Unit.DEPTH}
_SLOTS = {Unit.MASK: "mask_slot", Unit.KEYPOINT: "keypoint_slot", Unit.DEPTH: "depth_slot"}


def _room(spec: BatchSpec) -> dict[Unit, int]:
    return {
        Unit.MASK: spec.mask_refs,
        Unit.KEYPOINT: spec.kpt_refs,
        Unit.DEPTH: spec.depth_refs,
    }


def _random_target(
    row: dict[str, np.ndarray], spec: BatchSpec, rng: np.random.Generator, unit: Unit, slot: int
) -> None:
    """What a slot of a unit other than box holds."""
    if unit is Unit.MASK:
        x, y = rng.integers(0, spec.mask_size // 2, 2)
        row["masks"][slot, y : y + 10, x : x + 10] = 1
    elif unit is Unit.KEYPOINT:
        row["keypoints"][slot, :, :2] = rng.uniform(0.2, 0.8, (spec.kpt_points, 2))
        row["keypoints"][slot, :, 2] = rng.permutation(spec.kpt_points) % 3
    elif unit is Unit.DEPTH:
        side = spec.depth_size
        row["depth"][slot, 4 : side - 4] = rng.uniform(1.0, 9.0, (side - 8, side))
