"""A golden bundle made by the test from `transformers`: sizes, heads and cut-off as a test likes."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

SPECIAL = ("<Task>", "</Task>", "<Unit>", "</Unit>", "<v>", "</v>", "<Phrase>", "</Phrase>",
           "<VRT>", "<REF>")  # fmt: skip


def vision(**sizes) -> CLIPVisionModel:
    base = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3,
                image_size=40, patch_size=8)  # fmt: skip
    return CLIPVisionModel(
        CLIPVisionConfig(**{**base, **sizes}, attn_implementation="eager")
    ).eval()


def language(**sizes) -> LlamaForCausalLM:
    base = dict(vocab_size=70, hidden_size=48, intermediate_size=72, num_hidden_layers=3,
                num_attention_heads=6, num_key_value_heads=2, rms_norm_eps=1e-6)  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**base, **sizes}, attn_implementation="eager")).eval()


def write_bundle(prefix: Path, *, cutoff: int | None = None, **text_sizes) -> None:
    """Tower, projector and language model, two samples, the first without padding."""
    torch.manual_seed(0)
    tower, text = vision(), language(**text_sizes)
    width, inner = text.config.hidden_size, tower.config.hidden_size
    projector = torch.nn.Sequential(
        torch.nn.Linear(inner, width), torch.nn.GELU(), torch.nn.Linear(width, width)
    )
    weights = {f"visual_encoder.{clip_key(k)}": v for k, v in tower.state_dict().items()}
    weights |= {f"projector.model.{k}": v for k, v in projector.state_dict().items()}
    weights |= {f"llm.{k}": v for k, v in text.state_dict().items()}
    if text.config.tie_word_embeddings:
        weights.pop("llm.lm_head.weight", None)
    ids = torch.tensor([[5, -200, 9, 11, 12, 13], [-200, 7, 8, 9, 0, 0]])
    labels = torch.where(ids > 8, ids, -100)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    pixels = torch.randn(2, 3, tower.config.image_size, tower.config.image_size)
    outs = {}
    states = tower(pixels, output_hidden_states=True).hidden_states
    outs |= {f"clip_hidden_{k}": state for k, state in enumerate(states)}
    image = outs["projector_out"] = projector(states[-2][:, 1:])
    rows, targets = [], []
    for b in range(2):
        at = int((ids[b] == -200).nonzero()[0, 0])
        own = ids[b][mask[b]]
        before, after = own[:at], own[at + 1 :]
        embed = text.get_input_embeddings()
        rows.append(torch.cat([embed(before), image[b], embed(after)]))
        fill = torch.full((len(image[b]),), -100)
        targets.append(torch.cat([labels[b][:at], fill, labels[b][mask[b]][at + 1 :]]))
    length = max(map(len, rows))
    embeds = torch.stack([torch.nn.functional.pad(r, (0, 0, 0, length - len(r))) for r in rows])
    target = torch.stack(
        [torch.nn.functional.pad(t, (0, length - len(t)), value=-100) for t in targets]
    )
    real = torch.stack([torch.arange(length) < len(r) for r in rows])
    positions = torch.where(real, torch.arange(length), 0)
    embeds, target, real, positions = (x[:, :cutoff] for x in (embeds, target, real, positions))
    hidden = text.model(inputs_embeds=embeds, attention_mask=real, position_ids=positions)[0]
    logits = text.lm_head(hidden)
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), target[:, 1:].reshape(-1), ignore_index=-100
    )
    loss.backward()
    outs |= {"inputs_embeds": embeds, "llm_last_hidden": hidden, "logits": logits,
             "mm_labels": target.int(), "mm_attention_mask": real}  # fmt: skip
    named = {f"llm.{k}": p for k, p in text.named_parameters()}
    named |= {f"projector.model.{k}": p for k, p in projector.named_parameters()}
    tensors = {f"out.{k}": v for k, v in outs.items()}
    tensors |= {"in.input_ids": ids.int(), "in.labels": labels.int(), "in.attention_mask": mask}
    tensors |= {"in.pixel_values": pixels, "loss.llm_cost": loss[None], "loss.loss": loss[None]}
    tensors |= {f"gradnorm.{k}": p.grad.norm()[None] for k, p in named.items()}
    key = "llm.model.layers.0.self_attn.k_proj.weight"
    tensors[f"grad.{key}"] = named[key].grad
    config = {
        "llm": json.loads(text.config.to_json_string(use_diff=False)),
        "visual_encoder": json.loads(tower.config.to_json_string(use_diff=False)),
        "projector": {"visual_hidden_size": inner, "llm_hidden_size": width, "depth": 2},
        "vpt_encoder": None, "visual_decoder": None, "vd_adapter": None,
        "visual_select_layer": -2, "cutoff_len": cutoff, "loss_coefficient": {"llm": 1.0},
        "decode_units": None, "decode_seqs": None,
        "special_token_ids": {token: 60 + k for k, token in enumerate(SPECIAL)},
    }  # fmt: skip
    prefix.with_name(prefix.name + ".config.json").write_text(json.dumps(config))
    save_file(_plain(weights), prefix.with_name(prefix.name + ".weights.safetensors"))
    save_file(_plain(tensors), prefix.with_name(prefix.name + ".tensors.safetensors"))


def clip_key(key: str) -> str:
    """Newer classes dropped the level that released files have."""
    return key if key.startswith("vision_model.") else f"vision_model.{key}"


def _plain(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone().contiguous() for k, v in tensors.items()}


def as_numpy(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {k: v.detach().numpy() for k, v in tensors.items()}
