"""The smallest REF-VLM that has every part, and random batches for it. Nothing here is trained."""

import numpy as np

from refvlm_jax.batch import NO_GROUP, NO_SLOT, Batch, BatchSpec, empty_row
from refvlm_jax.config.model import (
    BoxUnitConfig,
    LlamaConfig,
    MaskUnitConfig,
    RefVLMConfig,
    RegionPromptConfig,
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
    )


def tiny_spec(config: RefVLMConfig, seq_len: int = 48) -> BatchSpec:
    """Batch sizes that fit `tiny_config`."""
    assert config.region_prompts is not None
    return BatchSpec(
        seq_len=seq_len,
        image_size=config.vision.image_size,
        image_tokens=config.vision.tokens,
        prompts=2,
        prompt_tokens=config.region_prompts.tokens,
        refs=6,
        mask_refs=4,
        mask_size=config.vision.image_size,
    )


def random_batch(spec: BatchSpec, rows: int, seed: int, vocab: int = 64) -> Batch:
    """A batch of `rows` random rows (see `random_row`)."""
    made = [random_row(spec, np.random.default_rng([seed, r]), r, vocab) for r in range(rows)]
    return Batch.from_dict({name: np.stack([row[name] for row in made]) for name in made[0]})


def random_row(
    spec: BatchSpec, rng: np.random.Generator, sample_id: int, vocab: int
) -> dict[str, np.ndarray]:
    """A row with a picture, up to two prompts, text, and boxes and masks in groups."""
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
    row["ref_group"][:count] = np.sort(rng.integers(0, 3, count))
    row["ref_group"][count:] = NO_GROUP
    used = 0
    for k in range(count):
        mask = row["ref_group"][k] == 1 and used < spec.mask_refs
        row["ref_unit"][k] = int(Unit.MASK if mask else Unit.BOX)
        row["mask_slot"][k] = used if mask else NO_SLOT
        x, y = rng.integers(0, spec.mask_size // 2, 2)
        if mask:
            row["masks"][used, y : y + 10, x : x + 10] = 1
            used += 1
        else:
            row["boxes"][k] = rng.uniform((0.2, 0.2, 0.1, 0.1), (0.8, 0.8, 0.3, 0.3))
