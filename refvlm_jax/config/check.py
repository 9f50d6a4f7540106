"""Value checks of a run configuration that need no device."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

from refvlm_jax.config.errors import ConfigError
from refvlm_jax.config.model import RefVLMConfig
from refvlm_jax.config.schema import AugmentConfig, DataConfig, MeshConfig, OptimConfig, RunConfig

# Integer or float fields that may be zero but not negative; every other number must be positive.
_MAY_BE_ZERO = {
    "attention_block",
    "logits_chunk",
    "vocab_padding",
    "flip",
    "colour",
    "hue",
    "global_layers",
    "phrase_ids",
    "images",
    "prompts",
    "refs",
    "mask_refs",
    "kpt_refs",
    "depth_refs",
    "workers",
    "warmup_steps",
    "end_lr_ratio",
    "weight_decay",
    "clip_norm",
    "eval_every",
    "hang_seconds",
    "profile_steps",
    "limit",
    "templates",
    "dropout",
    "lr_scale",
    "beta1",
    "beta2",
    "seed",
    "mask_threshold",
    "projector_depth",
    "bbox_weight",
    "giou_weight",
    "focal_weight",
    "dice_weight",
    "keypoint_weight",
    "distance_weight",
    "visibility_weight",
    "auxiliary_weight",
    "silog_weight",
    "silog_variance",
    "affine_weight",
    "gradient_weight",
    "weights",
    "loss_weights",
    "opening_steps",
    "opening_weights",
}
_ANY_SIGN = {"shape", "feature_layer", "image_mean", "features"}
_BELOW_ONE = {"beta1", "beta2", "dropout", "mask_threshold"}
_AT_MOST_ONE = {"decay_ratio"}


def check(config: RunConfig) -> None:
    """Raises ConfigError for the first impossible value."""
    for path, name, value in _numbers(config):
        _check_number(path, name, value)
    _check_mesh(config.mesh)
    _check_optim(config.optim, config.train.steps)
    _check_model(config.model)
    _check_tower(config.model)
    _check_adapter(config)
    _check_masks(config.model)
    _check_attention(config)
    _check_batch(config)
    _check_opening(config)
    _check_augment(config.data.augment)
    for pattern in config.train.keep_float32:
        _check_pattern("train.keep_float32", pattern)
    for pattern in config.ckpt.start_fresh:
        _check_pattern("ckpt.start_fresh", pattern)


def _numbers(node: Any, path: str = "", name: str = "") -> Iterator[tuple[str, str, float]]:
    """(dotted path, field name, value) of every number below `node`."""
    if dataclasses.is_dataclass(node):
        for field in dataclasses.fields(node):
            yield from _numbers(
                getattr(node, field.name), f"{path}.{field.name}".lstrip("."), field.name
            )
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _numbers(value, f"{path}.{key}", name)
    elif isinstance(node, tuple):
        for index, value in enumerate(node):
            yield from _numbers(value, f"{path}[{index}]", name)
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield path, name, node


def _check_number(path: str, name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ConfigError(f"{path} = {value} is not finite")
    if name in _ANY_SIGN:
        return
    if value < 0:
        raise ConfigError(f"{path} = {value} is negative; it must be at least 0")
    if value == 0 and name not in _MAY_BE_ZERO:
        raise ConfigError(f"{path} = 0 must be positive")
    if name in _BELOW_ONE and value >= 1:
        raise ConfigError(f"{path} = {value} must lie below 1")
    if name in _AT_MOST_ONE and value > 1:
        raise ConfigError(f"{path} = {value} is a share; it must be at most 1")


def _check_opening(config: RunConfig) -> None:
    steps, weights = config.data.opening_steps, config.data.opening_weights
    if bool(steps) != bool(weights):
        raise ConfigError(
            f"data.opening_steps = {steps} and data.opening_weights = {dict(weights)}: an opening "
            "needs both; set or clear both"
        )
    if steps and config.data.pack:
        raise ConfigError(
            "data.opening_steps counts rows of one conversation each, which data.pack = True does not "
            "make; clear one of them"
        )
    if steps > config.train.steps:
        raise ConfigError(
            f"data.opening_steps = {steps} is more than train.steps = {config.train.steps}"
        )


def _check_mesh(mesh: MeshConfig) -> None:
    if any(size < 1 and size != -1 for size in mesh.shape):
        raise ConfigError(f"mesh.shape = {mesh.shape}: sizes are positive, or -1 to fill")
    if mesh.shape.count(-1) > 1:
        raise ConfigError(f"mesh.shape = {mesh.shape}: only one axis can be -1")
    if mesh.preset == "single" and any(size > 1 for size in mesh.shape):
        raise ConfigError(
            f"mesh.shape = {mesh.shape} needs several devices but mesh.preset is 'single'; "
            "choose the preset 'fsdp' or the shape (1, 1, 1, 1)"
        )


def _check_optim(optim: OptimConfig, steps: int) -> None:
    if optim.warmup_steps > steps:
        raise ConfigError(
            f"optim.warmup_steps = {optim.warmup_steps} exceeds train.steps = {steps}"
        )
    for index, group in enumerate(optim.groups):
        _check_pattern(f"optim.groups[{index}].pattern", group.pattern)


def _check_pattern(path: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{path} = {pattern!r} is not a regular expression: {error}") from error


def _divides(divisor_name: str, divisor: int, name: str, value: int) -> None:
    if value % divisor:
        lower, upper = value - value % divisor, value - value % divisor + divisor
        options = f"{lower} or {upper}" if lower else str(upper)
        raise ConfigError(
            f"{name} = {value} is not divisible by {divisor_name} = {divisor}; use {options}"
        )


def _check_model(model: RefVLMConfig) -> None:
    vision, llama = model.vision, model.llama
    _divides(
        "model.vision.patch_size", vision.patch_size, "model.vision.image_size", vision.image_size
    )
    if vision.stem == "conv" and 2 ** (len(vision.stem_channels) + 1) != vision.patch_size:
        raise ConfigError(
            f"model.vision.patch_size = {vision.patch_size} must be the stride of the stem, "
            f"2 ** {len(vision.stem_channels) + 1} with these stem_channels"
        )
    _divides("model.vision.heads", vision.heads, "model.vision.width", vision.width)
    _divides("model.llama.kv_heads", llama.kv_heads, "model.llama.heads", llama.heads)
    if llama.head_dim % 2:
        raise ConfigError(f"model.llama.head_dim = {llama.head_dim} must be even (rotary halves)")
    for name, unit in _decoders(model).items():
        _divides(f"model.{name}.heads", unit.heads, f"model.{name}.width", unit.width)
    for name, pyramid in (("mask", model.mask), ("depth", model.depth)):
        if pyramid is not None:
            groups = pyramid.norm_groups
            _divides(f"model.{name}.norm_groups", groups, f"model.{name}.width", pyramid.width)
    if model.depth is not None and model.depth.min_depth >= model.depth.max_depth:
        raise ConfigError(
            f"model.depth.min_depth = {model.depth.min_depth} must lie below "
            f"model.depth.max_depth = {model.depth.max_depth}; both are metres"
        )


def _check_attention(config: RunConfig) -> None:
    """Refuses what the chosen attention kernel cannot serve."""
    llama = config.model.llama
    if llama.attention == "xla":
        return
    field = f"model.llama.attention = {llama.attention!r}"
    if llama.attention_block:
        raise ConfigError(
            f"{field} needs no blocks of queries; set model.llama.attention_block = 0"
        )
    if config.mesh.preset == "fsdp_seq":
        raise ConfigError(
            f"{field} needs whole rows on a device, which mesh.preset = 'fsdp_seq' splits; use another "
            "preset or attention = 'xla'"
        )
    if llama.attention == "cudnn" and config.train.compute_dtype == "float32":
        raise ConfigError(f"{field} knows no float32; set train.compute_dtype = 'bfloat16'")
    if llama.attention == "splash":
        tensor = max(1, config.mesh.shape[3]) if config.mesh.preset == "fsdp_tp" else 1
        if llama.kv_heads % tensor:
            raise ConfigError(
                f"{field} needs model.llama.kv_heads = {llama.kv_heads} to divide over the tensor axis "
                f"of mesh.shape = {config.mesh.shape}; use a size that divides it"
            )
        lengths = (config.data.seq_len, *config.data.buckets)
        if odd := [n for n in lengths if n % 128]:
            raise ConfigError(
                f"{field} works on blocks of 128 positions; {odd[0]} of data.seq_len or data.buckets is "
                f"no multiple of it, use {odd[0] - odd[0] % 128 + 128}"
            )
        if config.data.shared_picture:
            raise ConfigError(
                f"{field} keeps segments apart, not the dialogues side by side of "
                "data.shared_picture = True; turn that off or use attention = 'xla'"
            )


def _check_tower(model: RefVLMConfig) -> None:
    tower, maps = model.tower, model.feature_maps
    if tower is not None:
        if len(tower.depths) != len(tower.dims):
            raise ConfigError(
                f"model.tower.depths = {tower.depths} and model.tower.dims = {tower.dims} must name "
                "the same stages"
            )
        stride = 4 * 2 ** (len(tower.dims) - 1)
        _divides("the stride of its stages", stride, "model.tower.image_size", tower.image_size)
    source = "model.vision" if tower is None else "model.tower"
    for name, unit in _decoders(model).items():
        if any(not -maps <= index < maps for index in unit.features):
            raise ConfigError(
                f"model.{name}.features = {unit.features}, but {source} makes {maps} feature maps; "
                f"use indices in 0..{maps - 1}"
            )


def _check_adapter(config: RunConfig) -> None:
    adapter, llama = config.model.adapter, config.model.llama
    if adapter is None:
        return
    # Its cross-attention works at half the width.
    _divides("2 x model.adapter.heads", 2 * adapter.heads, "model.llama.width", llama.width)
    if max(adapter.phrase_ids) >= llama.vocab_size:
        raise ConfigError(
            f"model.adapter.phrase_ids = {adapter.phrase_ids} are not all below "
            f"model.llama.vocab_size = {llama.vocab_size}; use the tokenizer's ids of <Phrase> and "
            "</Phrase>"
        )
    if config.data.shared_picture:
        raise ConfigError(
            "data.shared_picture needs model.adapter = None: the adapted picture is a mean over all "
            "phrases of a row and would carry what one dialogue says to the others"
        )


def _check_masks(model: RefVLMConfig) -> None:
    sam = model.sam
    if sam is None:
        return
    if model.mask is not None:
        raise ConfigError(
            "model.mask and model.sam both decode masks; set model.mask to None to use SAM"
        )
    encoder = sam.encoder
    _divides("model.sam.chunk", sam.chunk, "model.sam.num_queries", sam.num_queries)
    _divides(
        "model.sam.encoder.patch_size",
        encoder.patch_size,
        "model.sam.encoder.image_size",
        encoder.image_size,
    )
    _divides("model.sam.encoder.heads", encoder.heads, "model.sam.encoder.width", encoder.width)
    _divides("2 x model.sam.heads", 2 * sam.heads, "model.sam.encoder.out_width", encoder.out_width)
    layers = encoder.global_layers
    if list(layers) != sorted({i for i in layers if i < encoder.layers}):
        raise ConfigError(
            f"model.sam.encoder.global_layers = {layers} must be increasing layers in "
            f"0..{encoder.layers - 1}"
        )


def _decoders(model: RefVLMConfig) -> dict[str, Any]:
    """The transformer decoders of the unit decoders by field name."""
    first = model.keypoint.box if model.keypoint else None
    found = {
        "box": model.box, "mask": model.mask, "keypoint": model.keypoint, "keypoint.box": first,
        "depth": model.depth,
    }  # fmt: skip
    return {name: unit for name, unit in found.items() if unit is not None}


def _check_augment(augment: AugmentConfig) -> None:
    low, high = augment.scale
    if not 0.1 <= low <= high <= 10:
        raise ConfigError(
            f"data.augment.scale = {augment.scale} is no range of factors; give least and greatest, "
            "between 0.1 and 10"
        )
    for name, most in (("flip", 1.0), ("colour", 0.9), ("hue", 0.5)):
        if getattr(augment, name) > most:
            raise ConfigError(
                f"data.augment.{name} = {getattr(augment, name)} is above {most}; lower it"
            )


def _check_batch(config: RunConfig) -> None:
    slots = {"keypoint": "kpt_refs", "depth": "depth_refs"}
    for unit, name in slots.items():
        if getattr(config.model, unit) is not None and not getattr(config.data, name):
            raise ConfigError(
                f"data.{name} = 0 leaves model.{unit} without targets; set it to at least 1, "
                f"or model.{unit} to None"
            )
    for name, unit in _decoders(config.model).items():
        if config.data.shared_picture and not unit.mask_padding_queries:
            raise ConfigError(
                f"data.shared_picture needs model.{name}.mask_padding_queries = True: empty query "
                "slots that take part would carry what one dialogue says to the others"
            )
    _check_buckets(config.data)
    if config.data.mixture and config.data.weights:
        raise ConfigError("data.mixture and data.weights both say what is sampled; set one of them")
    replica, fsdp, seq, _ = config.mesh.shape
    parts = config.train.accumulate
    _divides("train.accumulate", parts, "data.batch_size", config.data.batch_size)
    # A -1 is only known once devices are counted; `refvlm_jax.mesh.build` completes the check.
    rows = math.prod(size for size in (replica, fsdp) if size > 0)
    name = "train.accumulate x mesh replica x fsdp"
    _divides(name, parts * rows, "data.batch_size", config.data.batch_size)
    if seq > 1:
        for length in (config.data.seq_len, *config.data.buckets):
            _divides("mesh.shape seq", seq, "a length of data.seq_len and data.buckets", length)


def _check_buckets(data: DataConfig) -> None:
    lengths = (*data.buckets, data.seq_len)
    if list(lengths) != sorted(set(lengths)):
        raise ConfigError(
            f"data.buckets = {data.buckets} must ascend and stay below data.seq_len = {data.seq_len}"
        )
    if data.buckets and (data.pack or data.opening_steps):
        other = "data.pack" if data.pack else "data.opening_steps"
        raise ConfigError(
            f"data.buckets and {other} arrange the rows of a run in different ways; clear one of them"
        )
