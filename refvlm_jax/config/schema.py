"""Run configuration: frozen dataclasses, no JAX import, every field with one line of meaning."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from refvlm_jax.config.model import RefVLMConfig


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How pictures of training rows, and all regions with them, are changed at random; off as it stands.

    Changes that would make a dialogue's words wrong are left out.
    """

    flip: float = 0.0
    """Chance of a picture to be mirrored."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Least and greatest factor by which things grow: above 1 the borders are cut off, as far as nothing
    is lost that is referred to; below 1 the picture is padded."""
    colour: float = 0.0
    """Brightness, contrast and saturation change by a factor of up to 1 plus or minus this."""
    hue: float = 0.0
    """Hues turn by up to this share of the colour circle."""

    @property
    def active(self) -> bool:
        """Whether anything is ever changed."""
        return self != AugmentConfig()


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which built dataset a run reads and the static sizes of its batches."""

    path: str = ""
    """Folder of a built dataset (record shards and manifest); often given on the command line."""
    more_paths: tuple[str, ...] = ()
    """Folders of further built datasets that are mixed in."""
    mixture: str = ""
    """Mixture file (`configs/mixtures`): weights by source and task, in the place of `weights`."""
    eval_paths: Mapping[str, str] = field(default_factory=dict)
    """Split name -> folder of a built dataset that is only evaluated on."""
    tokenizer: str | None = None
    """Tokenizer folder; None uses the one stored with the dataset."""
    batch_size: int = 8
    """Rows of the global batch, summed over processes and micro-batches."""
    seq_len: int = 1024
    """Positions of a row after images and prompts are expanded."""
    images: int = 1
    """Image slots a row."""
    prompts: int = 16
    """Region prompt slots a row."""
    refs: int = 100
    """Reference slots a row."""
    mask_refs: int = 30
    """Mask target slots a row."""
    mask_size: int = 336
    """Side of a mask target in pixels."""
    kpt_refs: int = 0
    """Keypoint target slots a row; models without the unit have none."""
    depth_refs: int = 0
    """Depth target slots a row; models without the unit have none."""
    depth_size: int = 336
    """Side of a depth target in pixels."""
    workers: int = 0
    """Loader processes; 0 loads in threads of the training process."""
    threads: int = 4
    """Reading threads of a loader process."""
    jpeg: Literal["pillow", "simplejpeg"] = "pillow"
    """Decoder of JPEG pictures; simplejpeg (the extra `jpeg`) is a little faster."""
    scaled_decode: bool = False
    """Large JPEG pictures are decoded at a half, a quarter or an eighth of their size."""
    register: Literal["ref", "coord"] = "ref"
    """Answer style: `<REF>` tokens for unit decoders, or coordinates written as text."""
    plan_block: bool = True
    """Answers open with the plan block (`<Task>...</Task>`) that lists names, units and counts."""
    templates: int = 0
    """Questions are drawn from the first so many templates of a bank; 0 for all. A few teach a small
    model sooner, many teach a large one not to hang on the wording."""
    merge: int = 1
    """Dialogues about one picture merged into a row, at most."""
    shared_picture: bool = False
    """Merged dialogues share the picture but do not see each other; otherwise they are turns of one
    conversation, which tells later ones what earlier ones said about the picture."""
    pack: bool = False
    """Rows are filled with as many conversations as fit, with a picture each (up to `images`), which
    see nothing of each other. The sizes of all records are measured on first use, or beforehand by
    `refvlm data pack-plan`."""
    buckets: tuple[int, ...] = ()
    """Shorter lengths than `seq_len`, ascending: rows of about one length make a batch, which has the
    least of the lengths that holds them. The step is compiled once a length. Sizes of records are
    measured as for `pack`."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Task id -> sampling weight; empty samples tasks by their record counts."""
    opening_steps: int = 0
    """Steps at the start of a run that draw by `opening_weights` instead of `weights`, and teach text
    alone: references are written, but not decoded."""
    opening_weights: Mapping[str, float] = field(default_factory=dict)
    """As `weights`, for the opening: a first stage without a run of its own."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Changes of pictures and regions in training; evaluation has none."""
    seed: int = 0
    """Seed of the global sample order."""


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How devices are arranged and which sharding preset maps arrays to them."""

    preset: Literal["single", "fsdp", "hsdp", "fsdp_tp", "fsdp_seq"] = "single"
    """Sharding preset (`refvlm_jax.mesh.rules.PRESETS`); `single` uses one device."""
    shape: tuple[int, int, int, int] = (1, -1, 1, 1)
    """Sizes of the axes replica, fsdp, seq, tensor; one -1 is filled with what remains."""


@dataclass(frozen=True, kw_only=True)
class ParamGroup:
    """Optimiser settings of the parameters whose dotted name matches; the first match wins."""

    pattern: str
    """Regular expression searched in dotted names such as `llama.blocks.attn.q.kernel`."""
    lr_scale: float = 1.0
    """Factor on the learning rate."""
    weight_decay: float | None = None
    """Weight decay of the group; None keeps `optim.weight_decay`."""
    frozen: bool = False
    """True keeps the parameters out of the optimiser."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser, its schedule, parameter groups and loss weights."""

    name: Literal["adamw", "muon"] = "adamw"
    """`muon` moves weight matrices by their orthogonalised momentum (arXiv 2502.16982) and leaves
    vectors, embeddings and the vocabulary's head to AdamW; the same learning rates suit both."""
    lr: float = 1e-4
    """Peak learning rate."""
    warmup_steps: int = 0
    """Steps of linear warm-up to the peak."""
    schedule: Literal["cosine", "constant", "linear", "wsd"] = "cosine"
    """Course of the learning rate after the warm-up; `wsd` stays at the peak and falls at the end."""
    decay_ratio: float = 0.2
    """Share of the run's steps over which `wsd` falls; the other schedules do not use it."""
    end_lr_ratio: float = 0.0
    """Learning rate of the last step, relative to the peak."""
    weight_decay: float = 0.0
    """Decoupled weight decay; never applied to norms and biases."""
    muon_beta: float = 0.95
    """Decay of Muon's momentum."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    momentum_dtype: Literal["param", "float32", "bfloat16"] = "param"
    """Storage of the first moment (AdamW) or of the momentum (Muon); `param`: that of the parameters.
    The second moment always has theirs: its small steps would be lost in bfloat16."""
    clip_norm: float = 1.0
    """Global gradient norm is clipped to this; 0 turns clipping off."""
    groups: tuple[ParamGroup, ...] = ()
    """Parameter groups, searched in order."""
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    """Loss term -> weight in the total; 1 for terms not named."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length, precision and rhythm of a run."""

    steps: int = 1000
    """Optimiser steps of the whole run."""
    accumulate: int = 1
    """Micro-batches the global batch is split into."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Storage of trained parameters and of their optimiser moments."""
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    """Storage of frozen parameters."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Parameters are cast to this before the forward pass."""
    keep_float32: tuple[str, ...] = ()
    """Regular expressions of dotted names that the cast to `compute_dtype` leaves alone."""
    log_every: int = 10
    """Steps between metric records."""
    tensorboard: bool = True
    """Mirror the metric records to TensorBoard event files."""
    eval_every: int = 0
    """Steps between evaluations during training; 0 evaluates only when asked to."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite: `stop` ends the run before anything is saved, `skip` leaves
    that update out and counts it. Both list the samples in `nonfinite.jsonl` of the work folder."""
    nonfinite_limit: int = 10
    """Updates skipped in a row that end the run all the same."""
    hang_seconds: float = 1800.0
    """Time without progress after which all stacks are written to the work folder; 0 never. The first
    step's compilation must fit in; evaluations are exempt."""
    hang_exit: bool = False
    """End a hanging process with status 4 after its stacks are written, for a launcher to restart."""
    profile_steps: int = 5
    """Steps traced after the file `profile` in the work folder is touched; 0 turns it off."""


@dataclass(frozen=True, kw_only=True)
class CkptConfig:
    """When checkpoints are written and how many stay."""

    every_steps: int = 500
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Checkpoints kept; at least 2 allows falling back from a damaged one."""
    async_save: bool = True
    """Write in the background while training goes on."""
    start_from: tuple[str, ...] = ()
    """Where a new run takes its first weights from: work folders of earlier runs, imported checkpoints,
    files and folders of PyTorch weights. Of two that hold the same parameter the later one gives it."""
    start_fresh: tuple[str, ...] = ()
    """Regular expressions of dotted names that start from scratch all the same."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Generation and scoring settings."""

    max_new_tokens: int = 256
    """Longest generated answer."""
    batch_size: int = 8
    """Rows generated together."""
    limit: int = 0
    """Samples a split, at most; 0 is all of them."""
    mask_threshold: float = 0.5
    """Probability from which a pixel belongs to a mask."""
    tasks: tuple[str, ...] = ()
    """Task ids to score; empty for all that a held-out split has."""


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """What a quickstart renders of the synthetic shapes world before it trains."""

    level: int = 1
    """Difficulty of the scenes, 1 to 3."""
    train: int = 8000
    """Training scenes."""
    val: int = 400
    """Held-out scenes."""
    val_combos: int = 400
    """Held-out scenes with pairs of shape and colour never seen in training."""
    seed: int = 0
    """Seed of the scenes."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run depends on."""

    name: str
    """Name of the run, used for its folder and in reports."""
    seed: int = 0
    """Seed of initialisation and dropout."""
    model: RefVLMConfig = field(default_factory=RefVLMConfig)
    """Parts and sizes of the model."""
    data: DataConfig = field(default_factory=DataConfig)
    """Dataset and batch sizes."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """Device mesh and sharding preset."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser, parameter groups, loss weights."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Length, precision, rhythm."""
    ckpt: CkptConfig = field(default_factory=CkptConfig)
    """Checkpoints."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Generation and scoring."""
    world: WorldConfig | None = None
    """The synthetic world to render; None for recipes on real data."""
