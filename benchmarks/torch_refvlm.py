"""A plain PyTorch REF-VLM of the same shape as a `RefVLMConfig`, for timing beside the JAX one.

It takes the same static batch, has the same layers and losses and matches groups with SciPy on the
host, the way a straightforward PyTorch trainer does. It is a benchmark, not a port: weights are not
exchanged and small details (initialisation, region-prompt pooling) are the simplest that cost the same.
"""

import itertools
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from refvlm_jax.config.model import BoxUnitConfig, LlamaConfig, MaskUnitConfig, RefVLMConfig
from refvlm_jax.trp.tokens import IGNORE_ID, Unit


class ViTBlock(nn.Module):
    def __init__(self, width: int, heads: int, mlp: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, mlp), nn.GELU(), nn.Linear(mlp, width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class LlamaBlock(nn.Module):
    def __init__(self, c: LlamaConfig):
        super().__init__()
        self.c = c
        self.norm1, self.norm2 = nn.RMSNorm(c.width, c.norm_eps), nn.RMSNorm(c.width, c.norm_eps)
        self.q = nn.Linear(c.width, c.heads * c.head_dim, bias=False)
        self.kv = nn.Linear(c.width, 2 * c.kv_heads * c.head_dim, bias=False)
        self.o = nn.Linear(c.heads * c.head_dim, c.width, bias=False)
        self.up = nn.Linear(c.width, 2 * c.mlp_dim, bias=False)
        self.down = nn.Linear(c.mlp_dim, c.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        b, s, _ = x.shape
        h = self.norm1(x)
        q = self.q(h).view(b, s, self.c.heads, -1).transpose(1, 2)
        k, v = self.kv(h).view(b, s, 2 * self.c.kv_heads, -1).transpose(1, 2).chunk(2, dim=1)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        x = x + self.o(a.transpose(1, 2).reshape(b, s, -1))
        gate, up = self.up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def sine_grid(size: int, width: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    freq = 10000 ** (-torch.arange(width // 4) / (width // 4))
    parts = [f(c.flatten()[:, None] * freq) for c in (y, x) for f in (torch.sin, torch.cos)]
    return torch.cat(parts, dim=-1)


class Decoder(nn.Module):
    """DETR decoder: post-norm layers over REF queries."""

    def __init__(self, c: BoxUnitConfig | MaskUnitConfig):
        super().__init__()
        layer = nn.TransformerDecoderLayer(
            c.width, c.heads, c.mlp_dim, dropout=0.0, batch_first=True
        )
        self.layers = nn.TransformerDecoder(layer, c.layers, nn.LayerNorm(c.width))
        self.query = nn.Parameter(torch.randn(c.num_queries, c.width))

    def forward(self, queries: Tensor, memory: Tensor, padding: Tensor) -> Tensor:
        return self.layers(queries + self.query, memory, tgt_key_padding_mask=padding)


class TorchRefVLM(nn.Module):
    """Vision stem and blocks, projector, Llama, box and mask decoders, all losses."""

    def __init__(self, config: RefVLMConfig):
        super().__init__()
        v, llama = config.vision, config.llama
        assert config.box and config.mask and v.stem == "conv"
        self.config = config
        widths = [3, *v.stem_channels, v.width]
        self.stem = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in itertools.pairwise(widths))
        self.register_buffer("vision_pos", sine_grid(v.grid, v.width))
        self.vit = nn.ModuleList(ViTBlock(v.width, v.heads, v.mlp_dim) for _ in range(v.layers))
        self.prompt_position = nn.Parameter(torch.randn(config.region_prompts.tokens, v.width))
        self.projector = nn.Sequential(
            nn.Linear(v.width, llama.width), nn.GELU(), nn.Linear(llama.width, llama.width)
        )
        self.embedding = nn.Embedding(llama.vocab_size, llama.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(LlamaBlock(llama) for _ in range(llama.layers))
        self.norm = nn.RMSNorm(llama.width, llama.norm_eps)
        dims = [*v.stem_channels, v.width, v.width]
        box, mask = config.box, config.mask
        self.box_memory = nn.Linear(sum(dims[i] for i in box.features), box.width)
        self.box_query, self.box_decoder = nn.Linear(llama.width, box.width), Decoder(box)
        self.box_head = mlp(box.width, box.width, 4)
        fine, coarse = (dims[i] for i in (mask.features[0], mask.features[-1]))
        groups, d = mask.norm_groups, mask.width
        self.fpn_stem = conv_norm(coarse, d, 3, groups)
        self.fpn_lateral = conv_norm(fine, d, 1, groups, relu=False)
        self.fpn_block = conv_norm(d, d, 3, groups)
        self.fpn_out = nn.Conv2d(d, d, 3, padding=1)
        self.mask_memory, self.mask_query = nn.Linear(coarse, d), nn.Linear(llama.width, d)
        self.mask_decoder, self.mask_head = Decoder(mask), mlp(d, d, d)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        maps, tokens = self.encode(batch["images"][:, 0])
        hidden = self.language(batch, tokens)
        logits = hidden[:, :-1] @ self.embedding.weight.T
        labels = batch["labels"][:, 1:].long()
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_ID)
        return loss + self.box_loss(batch, hidden, maps) + self.mask_loss(batch, hidden, maps)

    def encode(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        x = (images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
        maps = []
        for conv in self.stem:
            x = F.gelu(conv(x))
            maps.append(x)
        tokens = x.flatten(2).transpose(1, 2) + self.vision_pos
        for block in self.vit:
            tokens = block(tokens)
        return [*maps, tokens.transpose(1, 2).reshape(x.shape)], tokens

    def language(self, batch: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
        visual = self.projector(torch.cat([tokens, self.prompts(batch, tokens)], dim=1))
        index = batch["visual_index"].long()
        placed = torch.gather(
            visual, 1, index.clamp(min=0)[..., None].expand(-1, -1, visual.shape[-1])
        )
        x = torch.where((index < 0)[..., None], self.embedding(batch["tokens"].long()), placed)
        c = self.config.llama
        freq = c.rope_theta ** (-torch.arange(0, c.head_dim, 2) / c.head_dim)
        angle = (batch["positions"][..., None] * freq)[:, None]
        segment = batch["segment_ids"]
        same = segment[:, :, None] == segment[:, None, :]
        mask = (same & torch.ones_like(same[0]).tril())[:, None]
        for block in self.blocks:
            x = block(x, angle.cos(), angle.sin(), mask)
        return self.norm(x)

    def prompts(self, batch: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
        g = self.config.vision.grid
        masks = F.adaptive_avg_pool2d(batch["prompt_masks"].float(), g).flatten(2) > 0
        weight = masks / masks.sum(-1, keepdim=True).clamp(min=1)
        pooled = (weight @ tokens)[:, :, None] + self.prompt_position
        return pooled.flatten(1, 2)

    def queries(
        self, batch: Mapping[str, Tensor], hidden: Tensor, unit: Unit, slots: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        own = batch["ref_valid"] & (batch["ref_unit"] == int(unit))
        rank = own.cumsum(1) - 1
        own &= rank < slots
        row, ref = own.nonzero(as_tuple=True)
        states = hidden[row, batch["ref_pos"].long()[row, ref]]
        queries = hidden.new_zeros(len(hidden), slots, hidden.shape[-1])
        queries = queries.index_put((row, rank[row, ref]), states)
        padding = torch.ones(len(hidden), slots, dtype=torch.bool)
        padding[row, rank[row, ref]] = False
        padding[padding.all(1)] = False
        return queries, padding, torch.stack([row, ref, rank[row, ref]])

    def box_loss(self, batch: Mapping[str, Tensor], hidden: Tensor, maps: list[Tensor]) -> Tensor:
        c = self.config.box
        first = maps[c.features[0]]
        resized = [F.interpolate(maps[i], first.shape[-2:], mode="bilinear") for i in c.features]
        memory = self.box_memory(torch.cat(resized, dim=1).flatten(2).transpose(1, 2))
        memory = memory + sine_grid(first.shape[-1], c.width)
        q, padding, (row, ref, slot) = self.queries(batch, hidden, Unit.BOX, c.num_queries)
        out = self.box_head(self.box_decoder(self.box_query(q), memory, padding)).sigmoid()
        pred, target = out[row, slot], batch["boxes"][row, ref]
        group = batch["ref_group"][row, ref]
        cost = c.bbox_weight * torch.cdist(pred, target, p=1) - c.giou_weight * giou(
            pred[:, None], target[None]
        )
        target = target[match(cost, row, group)]
        count = max(len(row), 1)
        l1 = (pred - target).abs().sum() / count
        return c.bbox_weight * l1 + c.giou_weight * (1 - giou(pred, target)).sum() / count

    def mask_loss(self, batch: Mapping[str, Tensor], hidden: Tensor, maps: list[Tensor]) -> Tensor:
        c = self.config.mask
        fine, coarse = maps[c.features[0]], maps[c.features[-1]]
        y = F.interpolate(self.fpn_stem(coarse), fine.shape[-2:], mode="nearest")
        pixel = self.fpn_out(self.fpn_block(y + self.fpn_lateral(fine)))
        memory = self.mask_memory(coarse.flatten(2).transpose(1, 2))
        memory = memory + sine_grid(coarse.shape[-1], c.width)
        q, padding, (row, ref, slot) = self.queries(batch, hidden, Unit.MASK, c.num_queries)
        embed = self.mask_head(self.mask_decoder(self.mask_query(q), memory, padding))
        logits = torch.einsum("bqc,bcyx->bqyx", embed, pixel)[row, slot]
        target = batch["masks"].float()[row, batch["mask_slot"].long()[row, ref]]
        small = F.interpolate(target[:, None], logits.shape[-2:], mode="nearest")[:, 0]
        cost = pair_cost(logits.flatten(1), small.flatten(1), c)
        target = target[match(cost, row, batch["ref_group"][row, ref])]
        big = F.interpolate(logits[:, None], target.shape[-2:], mode="bilinear")[:, 0]
        p, count = big.sigmoid(), max(len(row), 1)
        bce = F.binary_cross_entropy_with_logits(big, target, reduction="none")
        weight = torch.where(target > 0, 0.25 * (1 - p) ** 2, 0.75 * p**2)
        focal = (weight * bce).mean((1, 2)).sum() / count
        overlap = 2 * (p * target).sum((1, 2)) + 1
        dice = (1 - overlap / (p.sum((1, 2)) + target.sum((1, 2)) + 1)).sum() / count
        return c.focal_weight * focal + c.dice_weight * dice


def mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
        nn.Linear(hidden, out),
    )  # fmt: skip


def conv_norm(a: int, b: int, kernel: int, groups: int, relu: bool = True) -> nn.Sequential:
    layers = [nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=False), nn.GroupNorm(groups, b)]
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


def pair_cost(logits: Tensor, target: Tensor, c: MaskUnitConfig) -> Tensor:
    p, n = logits.sigmoid(), logits.shape[1]
    positive = 0.25 * (1 - p) ** 2 * F.softplus(-logits)
    negative = 0.75 * p**2 * F.softplus(logits)
    focal = (positive @ target.T + negative @ (1 - target).T) / n
    total = p.sum(1)[:, None] + target.sum(1)[None]
    return c.focal_weight * focal + c.dice_weight * (1 - (2 * p @ target.T + 1) / (total + 1))


def giou(a: Tensor, b: Tensor) -> Tensor:
    def corners(x: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., :2] - x[..., 2:] / 2, x[..., :2] + x[..., 2:] / 2

    (a0, a1), (b0, b1) = corners(a), corners(b)
    inner = (torch.minimum(a1, b1) - torch.maximum(a0, b0)).clamp(min=0).prod(-1)
    union = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - inner + 1e-7
    hull = (torch.maximum(a1, b1) - torch.minimum(a0, b0)).prod(-1) + 1e-7
    return inner / union - (hull - union) / hull


@torch.no_grad()
def match(cost: Tensor, row: Tensor, group: Tensor) -> Tensor:
    """Per group, the permutation of the targets that costs least."""
    costs = np.nan_to_num(cost.cpu().numpy())
    key = (row * 10_000 + group).cpu().numpy()
    order = np.arange(len(key))
    for value in np.unique(key):
        index = np.flatnonzero(key == value)
        if len(index) > 1:
            _, column = linear_sum_assignment(costs[np.ix_(index, index)])
            order[index] = index[column]
    return torch.from_numpy(order)
