"""Attention with separate linear layers for queries, keys, values and output: exact, and reversible bit by bit.

`nn.MultiheadAttention` keeps its three input projections in one tensor that no wrapper of linear layers (peft's) can
reach. Here each is an `nn.Linear` on a view of that tensor: nothing is copied, and joining the views gives the tensor back.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PARTS = ("q_proj", "k_proj", "v_proj")


class SplitAttention(nn.Module):
    """Self-attention on four linear layers `q_proj`, `k_proj`, `v_proj`, `out_proj`; called like `nn.MultiheadAttention`.

    Args:
        attention: the plain module whose tensors are shared, by reference.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = attention.embed_dim, attention.num_heads
        self.batch_first = attention.batch_first
        weights = cast(Tensor, attention.in_proj_weight).detach().chunk(3)
        biases = [None] * 3 if attention.in_proj_bias is None else attention.in_proj_bias.detach().chunk(3)
        for name, weight, bias in zip(PARTS, weights, biases, strict=True):
            self.add_module(name, _linear(weight, bias))
        out = attention.out_proj
        self.out_proj = _linear(out.weight.detach(), None if out.bias is None else out.bias.detach())
        self.train(attention.training)

    def project(self, x: Tensor, start: int = 0, stop: int = 3) -> tuple[Tensor, ...]:
        """Queries (0), keys (1) and values (2) of x (..., L, W), parts start..stop, each (..., L, H, d)."""
        shape = (*x.shape[:-1], self.num_heads, self.embed_dim // self.num_heads)
        return tuple(self.get_submodule(name)(x).view(shape) for name in PARTS[start:stop])

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        **unused: Any,
    ) -> tuple[Tensor, None]:
        """Attend; returns (B, L, W) and no weights.

        Args:
            query: tokens (B, L, W), or (L, B, W) where the plain module was not batch-first.
            key: as query, or None for self-attention.
            value: likewise.
            need_weights: must be False.
            attn_mask: additive, (L, L) or (B * H, L, L).
            unused: options of the plain module that no CLIP tower uses.
        """
        given = (query, query if key is None else key, query if value is None else value)
        q, k, v = (t if self.batch_first else t.transpose(0, 1) for t in given)
        q, k, v = (self.project(t, i, i + 1)[0].transpose(1, 2) for i, t in enumerate((q, k, v)))
        if attn_mask is not None and attn_mask.ndim == 3:
            attn_mask = attn_mask.view(-1, self.num_heads, *attn_mask.shape[1:])
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), None


def split(block: Any) -> SplitAttention:
    """Replace the attention of a residual block by its split form and return that; frozen tensors stay shared."""
    if not isinstance(block.attn, SplitAttention):
        block.attn = SplitAttention(block.attn)
    return cast(SplitAttention, block.attn)


def fuse(linears: dict[str, tuple[Tensor, Tensor | None]]) -> dict[str, Tensor]:
    """Join (weight, bias) of q_proj, k_proj, v_proj and out_proj under the names of `nn.MultiheadAttention`."""
    joined = {"in_proj_weight": torch.cat([linears[name][0] for name in PARTS])}
    biases = [linears[name][1] for name in PARTS]
    if biases[0] is not None:
        joined["in_proj_bias"] = torch.cat([b for b in biases if b is not None])
    weight, bias = linears["out_proj"]
    joined["out_proj.weight"] = weight
    if bias is not None:
        joined["out_proj.bias"] = bias
    return joined


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A frozen linear layer on given tensors, without allocating any."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer
