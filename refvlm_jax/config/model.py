"""Model configuration: frozen dataclasses, no JAX import, every field with one line of meaning."""

from dataclasses import dataclass, field
from typing import Literal

Remat = Literal["none", "full", "dots", "offload"]
"""What a backward pass computes again instead of keeping it: nothing, everything inside a layer, all but
the products with parameters, or the same with these products kept in the memory of the host."""


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """CLIP-style vision transformer (ViT-L/14-336 by default)."""

    image_size: int = 336
    """Side of the square input in pixels."""
    patch_size: int = 14
    """Side of a patch in pixels; with a conv stem, the stem's total stride."""
    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_dim: int = 4096
    feature_layer: int = -2
    """Hidden state handed to the projector, counted as in Hugging Face (0 = embeddings)."""
    class_token: bool = True
    """CLIP's class token; dropped from every feature handed on."""
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    stem: Literal["patch", "conv"] = "patch"
    """`conv` replaces the patch embedding by stride-2 convolutions, whose outputs are feature maps."""
    stem_channels: tuple[int, ...] = ()
    """Output channels of each stride-2 stem convolution but the last (which has `width`)."""
    position: Literal["learned", "sine"] = "learned"
    norm_eps: float = 1e-5
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Visual tokens of one picture."""
        return self.grid**2


@dataclass(frozen=True, kw_only=True)
class RegionPromptConfig:
    """Region-prompt encoder: pooled visual tokens for points, boxes, scribbles and masks."""

    num_patches: int = 9
    pooling: Literal["raster", "spatial", "conv", "legacy"] = "raster"
    """`raster` = runs of consecutive cells, as released weights expect; `spatial` = a true 3x3 grid;
    `conv` = a strided convolution of the masked map; `legacy` = the region's mean and its weights, each
    with its own map to the language model (`num_patches` is then 1)."""
    mask_token: bool = True
    """One more token made of the region's weights alone."""
    part_means: bool = False
    """Every part is its own mean over the region. Released weights expect the parts to add up to the
    mean of the region instead, which leaves a ninth of its size to each."""
    position_init: float = 1.0
    """Standard deviation of the position code at birth. At 1, as released, it outweighs what it marks
    until training has shrunk it or made the features larger."""

    @property
    def tokens(self) -> int:
        """Visual tokens of one prompt."""
        return self.num_patches + int(self.mask_token)

    @property
    def projects(self) -> bool:
        """The tokens have the language model's width already and skip the shared projector."""
        return self.pooling == "legacy"


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters on the Llama projections."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Llama-family decoder (Vicuna-7B v1.5 by default)."""

    vocab_size: int = 32010
    vocab_padding: int = 0
    """Rows behind the last token that make the table's length divide a mesh. They are never predicted
    and take no part in a loss; an export strips them."""
    width: int = 4096
    layers: int = 32
    heads: int = 32
    kv_heads: int = 32
    head_dim: int = 128
    mlp_dim: int = 11008
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    sliding_window: int | None = None
    attention: Literal["xla", "cudnn", "splash"] = "xla"
    """What runs attention over whole rows: XLA's products anywhere, cuDNN's kernel on NVIDIA GPUs, the
    Pallas kernel on TPUs (`nn.fused_attention`). A decoding step is always XLA's."""
    attention_block: int = 0
    """Queries that `xla` attends at a time (`nn.attention.causal_attention`); 0 = all; for unsharded
    lengths."""
    logits_chunk: int = 0
    """Positions whose vocabulary logits exist at a time while the loss is computed; 0 = all. The
    backward pass computes them again: less memory for one more product with the head. For unsharded
    lengths."""
    tie_embeddings: bool = False
    embedding_init: float = 0.02
    """Standard deviation of token embeddings at birth; small models learn sooner from larger ones."""
    unroll_layers: bool = False
    """Layers follow one another instead of looping: faster for shallow models, slower to compile."""
    remat: Remat = "full"
    """What a scanned block recomputes in the backward pass."""
    lora: LoraConfig | None = None

    @property
    def vocab_rows(self) -> int:
        """Rows of the embedding and columns of the head."""
        return self.vocab_size + self.vocab_padding


@dataclass(frozen=True, kw_only=True)
class BoxUnitConfig:
    """DETR-style box decoder queried by `<REF>` states."""

    num_queries: int = 100
    features: tuple[int, ...] = (8, 16, 23)
    """Indices into the vision feature maps, concatenated at the size of the first."""
    width: int = 256
    layers: int = 6
    heads: int = 8
    mlp_dim: int = 2048
    dropout: float = 0.1
    mask_padding_queries: bool = False
    """False lets empty query slots take part in self-attention, as released weights expect."""
    empty_queries: Literal["bias", "zero"] = "bias"
    """What an empty slot holds after the query projection: its bias, as released; zeros, as with the
    adapter."""
    query_init: float = 1.0
    """Standard deviation of the learned query positions at birth; small ones train from scratch."""
    position_cycles: float = 1.0
    """Waves of the finest sine position across the picture."""
    value_positions: bool = False
    """Adds the position code to the decoder's values too, not only to its keys."""
    group_matching: bool = True
    bbox_weight: float = 5.0
    giou_weight: float = 2.0


@dataclass(frozen=True, kw_only=True)
class MaskUnitConfig:
    """MaskFormer-style mask decoder queried by `<REF>` states."""

    num_queries: int = 30
    features: tuple[int, ...] = (8, 16, 23)
    """Indices into the vision feature maps, fine to coarse; the last one is the decoder's memory."""
    width: int = 256
    layers: int = 6
    heads: int = 8
    mlp_dim: int = 2048
    norm_groups: int = 32
    """Groups of the FPN's group normalisation."""
    dropout: float = 0.1
    mask_padding_queries: bool = False
    empty_queries: Literal["bias", "zero"] = "bias"
    """What an empty slot holds after the query projection: its bias, as released; zeros, as with the
    adapter."""
    query_init: float = 1.0
    """Standard deviation of the learned query positions at birth; small ones train from scratch."""
    position_cycles: float = 1.0
    """Waves of the finest sine position across the picture."""
    value_positions: bool = False
    """Adds the position code to the decoder's values too, not only to its keys."""
    group_matching: bool = True
    focal_weight: float = 20.0
    dice_weight: float = 1.0


COCO_SIGMAS = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072,
    0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089,
)  # fmt: skip
"""Spread of human annotators on the 17 COCO body points, in units of the object's size."""


@dataclass(frozen=True, kw_only=True)
class KeypointUnitConfig:
    """Keypoint decoder queried by `<REF>` states: a box decoder, then one query a body point."""

    box: BoxUnitConfig = field(default_factory=BoxUnitConfig)
    """The first decoder; its query slots, matching and box weights hold for the whole unit."""
    features: tuple[int, ...] = (8, 16, 23)
    """Indices into the vision feature maps, concatenated at the size of the first."""
    width: int = 256
    layers: int = 6
    heads: int = 8
    mlp_dim: int = 2048
    dropout: float = 0.1
    sigmas: tuple[float, ...] = COCO_SIGMAS
    """One tolerance of the OKS a body point; their number is the number of points."""
    mask_padding_queries: bool = False
    """False lets empty query slots take part in self-attention, as released weights expect."""
    query_init: float = 1.0
    """Standard deviation of the learned query positions and point embeddings at birth."""
    position_cycles: float = 1.0
    """Waves of the finest sine position across the picture."""
    value_positions: bool = False
    """Adds the position code to the decoder's values too, not only to its keys."""
    remat: Remat = "full"
    """What a decoder layer recomputes in the backward pass; a slot has a query a point, so its
    attention weights are large."""
    distance_loss: Literal["oks", "mean"] = "oks"
    """`oks` = 1 - object keypoint similarity; `mean` = mean distance of all points, labelled or
    not, which the released model was trained with under the name of OKS."""
    keypoint_weight: float = 2.0
    distance_weight: float = 2.0
    visibility_weight: float = 1.0
    auxiliary_weight: float = 0.5
    """Factor on the box losses of the first decoder's own boxes; 0 leaves them out."""

    @property
    def num_queries(self) -> int:
        """Reference slots of the unit."""
        return self.box.num_queries

    @property
    def points(self) -> int:
        """Body points of one reference."""
        return len(self.sigmas)


@dataclass(frozen=True, kw_only=True)
class DepthUnitConfig:
    """Dense depth decoder queried by `<REF>` states: adaptive bins over a feature pyramid."""

    num_queries: int = 1
    """Depth maps of one picture; an answer normally asks for one."""
    features: tuple[int, ...] = (8, 16, 23)
    """Indices into the vision feature maps, fine to coarse; the last one is the decoder's memory."""
    width: int = 256
    layers: int = 3
    heads: int = 8
    mlp_dim: int = 1024
    norm_groups: int = 32
    """Groups of the FPN's group normalisation."""
    dropout: float = 0.1
    mask_padding_queries: bool = True
    query_init: float = 0.02
    """Standard deviation of the learned query positions at birth."""
    position_cycles: float = 1.0
    """Waves of the finest sine position across the picture."""
    value_positions: bool = False
    """Adds the position code to the decoder's values too, not only to its keys."""
    mode: Literal["metric", "relative"] = "metric"
    """`metric` answers metres; `relative` answers inverse depth up to scale and shift, in [0, 1]."""
    bins: int = 64
    min_depth: float = 0.1
    """Nearest depth in metres; the bins share the logarithms between it and the farthest."""
    max_depth: float = 80.0
    """Farthest depth in metres."""
    silog_weight: float = 10.0
    silog_variance: float = 0.85
    """Share of the mean log error that is forgiven: 1 = any scale fits, 0 = metric error."""
    affine_weight: float = 1.0
    """Of the error after alignment, for relative depth."""
    gradient_weight: float = 0.5
    gradient_scales: int = 4
    """Resolutions the gradients of the error are taken at, each half of the one before."""


@dataclass(frozen=True, kw_only=True)
class ConvNextConfig:
    """ConvNeXt visual tower (the trunk of open_clip's ConvNeXt-Large by default)."""

    image_size: int = 512
    """Side of the square input in pixels; pictures of other sizes are resized on the device."""
    depths: tuple[int, ...] = (3, 3, 27, 3)
    """Blocks of each stage."""
    dims: tuple[int, ...] = (192, 384, 768, 1536)
    """Channels of each stage; each later stage halves the resolution."""
    layer_scale: float = 1e-6
    """Factor on every residual branch at birth."""
    norm_eps: float = 1e-6
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Two-way adapter between the language model's states and the unit decoders."""

    groups: int = 32
    """Phrases of a row that are adapted; the references of later ones are not decoded."""
    phrase_length: int = 100
    """Tokens of a phrase that are read."""
    phrase_ids: tuple[int, int] = (32006, 32007)
    """The tokenizer's ids of `<Phrase>` and `</Phrase>`; here those of released checkpoints."""
    ref_length: int = 100
    """References of a phrase that are adapted; further ones are not decoded."""
    projection_dim: int = 8192
    """Hidden width of the input projections."""
    layers: int = 2
    heads: int = 8
    mlp_dim: int = 8192
    remat: Remat = "full"
    """What a layer recomputes in the backward pass."""


@dataclass(frozen=True, kw_only=True)
class SamEncoderConfig:
    """Image encoder of Segment Anything (ViT-H by default; see `SAM_ENCODERS`)."""

    image_size: int = 1024
    """Side of the square input in pixels; pictures of other sizes are resized on the device."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    width: int = 1280
    layers: int = 32
    heads: int = 16
    mlp_dim: int = 5120
    global_layers: tuple[int, ...] = (7, 15, 23, 31)
    """Layers that attend to the whole picture; the others attend inside windows."""
    window: int = 14
    """Side of a window in patches."""
    out_width: int = 256
    """Channels of the embedding handed on."""
    norm_eps: float = 1e-6
    attention_block: int = 1024
    """Patches that attend at a time in global layers: bounds memory; 0 = all."""
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


SAM_ENCODERS = {
    "base": SamEncoderConfig(
        width=768, layers=12, heads=12, mlp_dim=3072, global_layers=(2, 5, 8, 11)
    ),
    "large": SamEncoderConfig(
        width=1024, layers=24, heads=16, mlp_dim=4096, global_layers=(5, 11, 17, 23)
    ),
    "huge": SamEncoderConfig(),
}
"""The released encoders, ViT-B, ViT-L and ViT-H."""


@dataclass(frozen=True, kw_only=True)
class SamUnitConfig:
    """Segment Anything as a mask unit: each `<REF>` state is a prompt of its mask decoder."""

    num_queries: int = 100
    """Masks of one picture; the references of later ones are not decoded."""
    encoder: SamEncoderConfig = field(default_factory=SamEncoderConfig)
    """Sees the picture; normally frozen, as are the prompt embeddings: a parameter group with the
    pattern `^sam[.](encoder|prompts)[.]` does it."""
    layers: int = 2
    """Layers of the two-way transformer."""
    heads: int = 8
    mlp_dim: int = 2048
    mask_tokens: int = 4
    """Masks of one prompt: the first is used here, the others are SAM's three guesses at what an
    ambiguous click means."""
    iou_hidden: int = 256
    """Hidden width of the head that estimates the quality of each mask."""
    mask_prompt_channels: int = 16
    """Channels inside the embedding of mask prompts."""
    chunk: int = 10
    """References decoded at a time; a chunk without any is skipped, and only its inputs are kept for
    the backward pass."""
    group_matching: bool = True
    focal_weight: float = 20.0
    dice_weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class RefVLMConfig:
    """The composed model: which parts exist and their sizes."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    tower: ConvNextConfig | None = None
    """Makes the feature maps of the unit decoders, in place of the vision transformer's own."""
    region_prompts: RegionPromptConfig | None = field(default_factory=RegionPromptConfig)
    projector_depth: int = 2
    llama: LlamaConfig = field(default_factory=LlamaConfig)
    adapter: AdapterConfig | None = None
    """Stands between the language model and the unit decoders."""
    box: BoxUnitConfig | None = field(default_factory=BoxUnitConfig)
    mask: MaskUnitConfig | None = field(default_factory=MaskUnitConfig)
    sam: SamUnitConfig | None = None
    """Decodes masks in place of `mask`."""
    keypoint: KeypointUnitConfig | None = None
    depth: DepthUnitConfig | None = None

    @property
    def mask_unit(self) -> MaskUnitConfig | SamUnitConfig | None:
        """The decoder of mask references, of either kind."""
        return self.mask or self.sam

    @property
    def feature_maps(self) -> int:
        """Feature maps that the unit decoders choose from, the last at the language model's grid."""
        if self.tower is not None:
            return len(self.tower.dims) + 1
        if self.vision.stem == "conv":
            return len(self.vision.stem_channels) + 2
        return self.vision.layers + 1
