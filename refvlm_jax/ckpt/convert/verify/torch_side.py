"""PyTorch's half of a parity certificate: hidden states of its own classes on given inputs.

The only file of the converter, beside the reader of PyTorch files, that imports torch.
"""

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refvlm_jax.ckpt.convert.tensors import ConvertError
from refvlm_jax.ckpt.convert.verify.torch_names import DETR, SAM, TOWER, Weights, renamed
from refvlm_jax.config.model import ConvNextConfig, SamUnitConfig


def _torch() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ConvertError(
            f"--torch compares with PyTorch itself, which is not installed ({error.name}); "
            "`pip install torch transformers`, or leave --torch out"
        ) from error
    return torch, transformers


def language_states(folder: Path, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """`layer_k` = input of block k, the state after the final norm, and the logits."""
    torch, transformers = _torch()
    model = _load(transformers.AutoModelForCausalLM, folder, torch)
    with torch.no_grad():
        found = model(input_ids=torch.from_numpy(tokens).long(), output_hidden_states=True)
    states = [state.numpy() for state in found.hidden_states]
    named = {f"layer_{k}": state for k, state in enumerate(states[:-1])}
    return {**named, "last_hidden": states[-1], "logits": found.logits.numpy()}


def vision_states(folder: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """`layer_k` = hidden state k with the class token."""
    torch, transformers = _torch()
    model = _load(transformers.CLIPVisionModel, folder, torch)
    with torch.no_grad():
        found = model(pixel_values=_channels_first(images, torch), output_hidden_states=True)
    return {f"layer_{k}": state.numpy() for k, state in enumerate(found.hidden_states)}


def projector_states(weights: Weights, x: np.ndarray) -> dict[str, np.ndarray]:
    """`layer_k` = output of linear map k; GELU stands between them."""
    torch, _ = _torch()
    value, found = torch.from_numpy(x), {}
    count = sum(key.endswith(".weight") for key in weights)
    for k in range(count):
        kernel, bias = (
            torch.from_numpy(weights[f"model.{2 * k}.{name}"]) for name in ("weight", "bias")
        )
        value = torch.nn.functional.gelu(value) if k else value
        value = torch.nn.functional.linear(value, kernel, bias)
        found[f"layer_{k}"] = value.numpy()
    return found


def tower_states(weights: Weights, c: ConvNextConfig, images: np.ndarray) -> dict[str, np.ndarray]:
    """`stage_k` = output of stage k."""
    torch, transformers = _torch()
    sizes = dict(num_stages=len(c.dims), hidden_sizes=list(c.dims), depths=list(c.depths))

    def build() -> Any:
        model = transformers.ConvNextModel(transformers.ConvNextConfig(**sizes))
        model.layernorm = torch.nn.Identity()  # of the pooled vector, which the tower does not have
        return model

    model = _holding(build, renamed(weights, TOWER), torch)
    states = _outputs({f"stage_{k}": stage for k, stage in enumerate(model.encoder.stages)})
    with torch.no_grad():
        model(_channels_first(images, torch))
    return {name: _channels_last(state) for name, state in states.items()}


def detr_states(
    weights: Weights,
    heads: int,
    x: np.ndarray,
    query_position: np.ndarray,
    memory: np.ndarray,
    memory_position: np.ndarray,
) -> dict[str, np.ndarray]:
    """`layer_k` = output of layer k of a DETR decoder, and the `norm` of the last one.

    Inputs are [B, Q, d], [Q, d], [B, S, d] and [S, d].
    """
    torch, transformers = _torch()
    from transformers.models.detr.modeling_detr import DetrDecoder

    hidden, width = weights["layers.0.fc1.weight"].shape
    config = transformers.DetrConfig(
        backbone_config=transformers.ResNetConfig(),  # the default asks for a package more
        d_model=width,
        decoder_layers=len({key.split(".")[1] for key in weights if key.startswith("layers.")}),
        decoder_attention_heads=heads,
        decoder_ffn_dim=hidden,
    )
    model = _holding(lambda: DetrDecoder(config), renamed(weights, DETR), torch)
    named = {f"layer_{k}": layer for k, layer in enumerate(model.layers)}
    states = _outputs({**named, "norm": model.layernorm})
    with torch.no_grad():
        model(
            inputs_embeds=torch.from_numpy(x),
            encoder_hidden_states=torch.from_numpy(memory),
            spatial_position_embeddings=torch.from_numpy(memory_position)[None],
            object_queries_position_embeddings=torch.from_numpy(query_position)[None],
        )
    return {name: state.numpy() for name, state in states.items()}


def pixel_decoder(weights: Weights, maps: Sequence[np.ndarray]) -> np.ndarray:
    """Output of MaskFormer's pixel decoder on maps from fine to coarse."""
    torch, _ = _torch()
    from transformers.models.maskformer.modeling_maskformer import MaskFormerPixelDecoder

    dims, width = [x.shape[-1] for x in maps], len(weights["mask_projection.bias"])
    sizes = dict(feature_size=width, mask_feature_size=width)

    def build() -> Any:
        return MaskFormerPixelDecoder(in_features=dims[-1], lateral_widths=dims[:-1], **sizes)

    model = _holding(build, weights, torch)
    with torch.no_grad():
        found = model([_channels_first(x, torch) for x in maps])
    return _channels_last(found.last_hidden_state)


def sam_states(
    weights: Weights,
    c: SamUnitConfig,
    clicks: np.ndarray,
    *,
    images: np.ndarray,
    picture: np.ndarray,
    points: np.ndarray,
    boxes: np.ndarray,
    mask: np.ndarray,
) -> dict[str, np.ndarray]:
    """States of the encoder, the single mask without a mask prompt, and the many with one.

    Args:
      images: what the encoder reads; its states are `encoder.layer_k` and `encoder.embedding`.
      picture: the embedding that the decoder reads, so that its errors are its own.
      clicks, points, boxes: int[P, n], [P, n, 2] and [P, 4] of P prompts, places as fractions.
      mask: the mask prompt of all of them.
    """
    torch, transformers = _torch()
    config = _sam_config(c, transformers)
    model = _holding(lambda: transformers.SamModel(config), _sam_weights(weights), torch)
    layers = enumerate(model.vision_encoder.layers)
    states = _outputs({f"encoder.layer_{k}": layer for k, layer in layers})
    found = {}
    with torch.no_grad():
        embedding = model.get_image_embeddings(_channels_first(images, torch))
        for name, masks in (("one", None), ("many", torch.from_numpy(mask)[None])):
            given = model(
                image_embeddings=_channels_first(picture, torch),
                input_points=torch.from_numpy(points * c.encoder.image_size)[None],
                input_labels=torch.from_numpy(clicks)[None],
                input_boxes=torch.from_numpy(boxes * c.encoder.image_size)[None],
                input_masks=masks,
                multimask_output=name == "many",
            )
            found[f"decoder.{name}.masks"] = given.pred_masks[0].numpy()
            found[f"decoder.{name}.quality"] = given.iou_scores[0].numpy()
    blocks = {name: state.numpy() for name, state in states.items()}
    return {**blocks, "encoder.embedding": _channels_last(embedding), **found}


def _sam_weights(weights: Weights) -> Weights:
    found = renamed(weights, SAM)
    shared = found["shared_image_embedding.positional_embedding"]  # one tensor under two names
    return {**found, "prompt_encoder.shared_embedding.positional_embedding": shared}


def _sam_config(c: SamUnitConfig, transformers: Any) -> Any:
    e = c.encoder
    size = dict(image_size=e.image_size, patch_size=e.patch_size)
    return transformers.SamConfig(
        vision_config=dict(
            **size,
            hidden_size=e.width,
            output_channels=e.out_width,
            num_hidden_layers=e.layers,
            num_attention_heads=e.heads,
            mlp_dim=e.mlp_dim,
            window_size=e.window,
            global_attn_indexes=list(e.global_layers),
            num_pos_feats=e.out_width // 2,
        ),
        prompt_encoder_config=dict(
            **size, hidden_size=e.out_width, mask_input_channels=c.mask_prompt_channels
        ),
        mask_decoder_config=dict(
            hidden_size=e.out_width,
            mlp_dim=c.mlp_dim,
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            num_multimask_outputs=c.mask_tokens - 1,
            iou_head_hidden_dim=c.iou_hidden,
            layer_norm_eps=1e-5,  # of SAM's own code; the class says 1e-6
        ),
    )


def _holding(build: Callable[[], Any], weights: Weights, torch: Any) -> Any:
    """The module with exactly these weights, without a copy of them."""
    with torch.device("meta"):
        module = build()
    try:
        tensors = {key: torch.from_numpy(value) for key, value in weights.items()}
        module.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        why = " ".join(str(error).split())[:160]
        raise ConvertError(f"the PyTorch weights do not fit their class ({why})") from error
    return module.eval()


def _outputs(layers: Mapping[str, Any]) -> dict[str, Any]:
    """What the next forward pass fills with the outputs of these modules."""
    found: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _, __, output: found.update({name: output.clone()})

    for name, layer in layers.items():
        layer.register_forward_hook(keep(name))
    return found


def _channels_first(x: np.ndarray, torch: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def _channels_last(x: Any) -> np.ndarray:
    return x.permute(0, 2, 3, 1).numpy()


def _load(kind: Any, folder: Path, torch: Any) -> Any:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is the report's
            model = _from_pretrained(kind, folder, torch)
    except Exception as error:  # from_pretrained raises many types
        why = " ".join(str(error).split())[:160]
        raise ConvertError(f"{folder} cannot be loaded by transformers ({why})") from error
    return model.eval()


def _from_pretrained(kind: Any, folder: Path, torch: Any) -> Any:
    return kind.from_pretrained(
        str(folder), dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
