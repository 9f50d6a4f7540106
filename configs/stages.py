"""The published training stages on the published sizes; every recipe file is one call of this module.

Sizes: CLIP ViT-L/14 at 336 pixels, ConvNeXt-L at 512, a 7 or 8 billion parameter language model, 2048
positions a row (REF-VLM, arXiv 2503.07413, appendix). Learning rates and lengths are those of the
published checkpoints where they are known; `launch` and `plan` never depend on them.
"""

from typing import Any, Literal

from ml_collections import ConfigDict

NEW_TOKENS = 10
"""Tokens that REF-VLM adds to a tokenizer, `<Phrase>` and `</Phrase>` at the places 6 and 7."""
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    # Vicuna-7B v1.5 has the sizes of Llama 2.
    "vicuna7b": dict(
        vocab_size=32000, width=4096, layers=32, heads=32, kv_heads=32, head_dim=128, mlp_dim=11008,
        rope_theta=1e4, norm_eps=1e-5,
    ),
    "llama3_8b": dict(
        vocab_size=128256, width=4096, layers=32, heads=32, kv_heads=8, head_dim=128, mlp_dim=14336,
        rope_theta=5e5, norm_eps=1e-5,
    ),
    # Mistral-7B v0.1, the version with a sliding window.
    "mistral_7b": dict(
        vocab_size=32000, width=4096, layers=32, heads=32, kv_heads=8, head_dim=128, mlp_dim=14336,
        rope_theta=1e4, norm_eps=1e-5, sliding_window=4096,
    ),
    # TinyLlama-1.1B: Llama 2's vocabulary and layout at a size that one accelerator trains whole.
    "1b": dict(
        vocab_size=32000, width=2048, layers=22, heads=32, kv_heads=4, head_dim=64, mlp_dim=5632,
        rope_theta=1e4, norm_eps=1e-5,
    ),
}  # fmt: skip
LanguageModel = Literal["vicuna7b", "llama3_8b", "mistral_7b", "1b"]
TOWER_MAPS = (0, 1, 2, 4)
"""ConvNeXt's three finer stages and CLIP's tokens, which the released decoders read."""


def _base(name: str, language_model: LanguageModel) -> ConfigDict:
    """What all stages share: sizes, precision, a mesh of one axis that fills every device."""
    config = ConfigDict()
    config.name = f"{name}_{language_model}"
    llama = dict(LANGUAGE_MODELS[language_model])
    llama["vocab_size"] += NEW_TOKENS
    # So that a tensor axis of any usual size divides the table.
    llama["vocab_padding"] = -llama["vocab_size"] % 128
    # Blocks of queries keep the S x S scores out of memory on devices of 16 GB.
    llama.update(remat="full", attention_block=512)
    config.model = dict(
        vision={}, llama=llama, region_prompts={}, box=None, mask=None,
    )  # fmt: skip
    config.data = dict(batch_size=128, seq_len=2048, prompts=16, refs=100, mask_refs=30, merge=4)
    config.mesh = dict(preset="fsdp", shape=(1, -1, 1, 1))
    config.train = dict(
        param_dtype="float32", frozen_dtype="bfloat16", compute_dtype="bfloat16", log_every=20,
    )  # fmt: skip
    config.optim = dict(weight_decay=0.0, beta1=0.9, beta2=0.999, clip_norm=1.0)
    return config


def _schedule(config: ConfigDict, *, lr: float, steps: int) -> None:
    """Warm-up over 3% of the run, then a cosine to zero."""
    config.train.steps = steps
    config.optim.update(lr=lr, warmup_steps=max(steps * 3 // 100, 1), schedule="cosine")


def _freeze(config: ConfigDict, *patterns: str, but: tuple[str, ...] = ()) -> None:
    """Keeps the parameters that match out of the optimiser, except those that match `but`."""
    groups = [dict(pattern=pattern) for pattern in but]
    config.optim.groups = [*groups, *(dict(pattern=p, frozen=True) for p in patterns)]


def _decoders(config: ConfigDict) -> None:
    """The tower with the box and mask decoders that read it."""
    config.model.tower = dict(image_size=512)
    config.model.box = dict(num_queries=100, features=TOWER_MAPS)
    config.model.mask = dict(num_queries=30, features=TOWER_MAPS)
    # The published coefficients: half of a decoder's own weights, beside 1 for the text.
    config.optim.loss_weights = dict(
        llm=1.0, box_l1=2.5, box_giou=1.0, mask_focal=10.0, mask_dice=0.5
    )


def stage1(language_model: LanguageModel) -> ConfigDict:
    """Aligns pictures and words: the projector alone is trained, answers are text."""
    config = _base("stage1", language_model)
    config.model.region_prompts = None
    config.data.update(batch_size=256, prompts=0, register="coord")
    _freeze(config, "^vision[.]", "^llama[.]")
    _schedule(config, lr=1e-3, steps=3558)
    return config


def stage2(language_model: LanguageModel) -> ConfigDict:
    """Language model, projector, region prompts, box and mask decoders are trained together."""
    config = _base("stage2", language_model)
    _decoders(config)
    _freeze(config, "^vision[.]", "^tower[.]")
    _schedule(config, lr=2e-5, steps=64500)
    return config


def stage2_lora(language_model: LanguageModel) -> ConfigDict:
    """Stage 2 with low-rank adapters in place of the language model's own weights.

    Embedding and head stay trained: the ten new tokens have no rows worth keeping.
    """
    config = stage2(language_model)
    config.name = f"stage2_lora_{language_model}"
    config.model.llama.lora = dict(rank=128, alpha=256.0)
    trained = ("[.]lora_[ab]$", r"^llama[.](embedding|lm_head)$")
    _freeze(config, "^vision[.]", "^tower[.]", "^llama[.]", but=trained)
    config.optim.lr = 2e-4
    return config


def stage2_adapter(language_model: LanguageModel) -> ConfigDict:
    """The optional adapter with the decoders behind it; everything before them is frozen."""
    config = stage2(language_model)
    config.name = f"stage2_adapter_{language_model}"
    first = LANGUAGE_MODELS[language_model]["vocab_size"]
    config.model.adapter = dict(phrase_ids=(first + 6, first + 7))
    for unit in ("box", "mask"):
        config.model[unit].empty_queries = "zero"
    del config.optim.loss_weights
    frozen = ("^vision[.]", "^tower[.]", "^llama[.]", "^projector[.]", "^region_prompts[.]")
    _freeze(config, *frozen)
    _schedule(config, lr=2e-5, steps=11500)
    return config


def sft(language_model: LanguageModel) -> ConfigDict:
    """Fine-tunes a stage 2 checkpoint on one set of tasks for three epochs."""
    config = stage2(language_model)
    config.name = f"sft_{language_model}"
    _schedule(config, lr=2e-5, steps=18860)
    return config


def stage3_keypoint(language_model: LanguageModel) -> ConfigDict:
    """Adds the keypoint decoder, which starts from scratch."""
    config = _base("stage3_keypoint", language_model)
    config.model.tower = dict(image_size=512)
    config.model.keypoint = dict(
        features=TOWER_MAPS, box=dict(num_queries=100, features=TOWER_MAPS), remat="full"
    )
    config.data.update(batch_size=64, mask_refs=0, kpt_refs=100)
    _freeze(config, "^vision[.]", "^tower[.]")
    _schedule(config, lr=1e-4, steps=34160)
    return config


def stage3_sam(language_model: LanguageModel) -> ConfigDict:
    """Masks by Segment Anything (ViT-H), each `<REF>` a prompt of its decoder."""
    config = _base("stage3_sam", language_model)
    config.model.sam = dict(num_queries=100)
    config.data.update(mask_refs=100)
    _freeze(config, "^vision[.]", "^sam[.](encoder|prompts)[.]")
    _schedule(config, lr=2e-6, steps=9500)
    return config


def one_device(config: ConfigDict) -> ConfigDict:
    """The recipe on a single accelerator, its batch in micro-batches of eight rows."""
    config.mesh = dict(preset="single", shape=(1, 1, 1, 1))
    config.train.accumulate = config.data.batch_size // 8
    return config
