"""Relational attention over ordered pairs of images, in time and memory of single images.

For a pair (i, j), queries attend to the tokens of both images with one softmax, and the part that comes from j is
subtracted from the part that comes from i. With S the logits of one image, l = logsumexp(S) and V = softmax(S) v,

    O_ij = sigmoid(l_i - l_j) V_i - sigmoid(l_j - l_i) V_j,

so that only l and V of each image are needed: the keys of two images never have to stand side by side. The sum over
queries commutes with the linear output projection: sum_m (W O_ijm + b) = W (sum_m O_ijm) + M b.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Summary = tuple[Tensor, Tensor]
"""Of N images: log-sum-exp of the logits (N, H, M), and pooled values (N, H, M, d)."""


class PairAttention(nn.Module):
    """M learned queries over the tokens of two images, summed over the queries.

    Args:
        width: D, of tokens, queries and result.
        heads: H; D = H d.
        queries: M.
    """

    def __init__(self, width: int, heads: int, queries: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries = nn.Parameter(torch.randn(queries, width) * width**-0.5)
        self.q_proj, self.ln_q = nn.Linear(width, width), nn.LayerNorm(width)
        self.kv_proj, self.ln_kv = nn.Linear(width, width), nn.LayerNorm(width)
        self.out_proj = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """(..., L, D) -> (..., H, L, d)."""
        return x.reshape(*x.shape[:-1], self.heads, -1).transpose(-2, -3)

    def query(self) -> Tensor:
        """Queries (H, M, d), already scaled."""
        q: Tensor = self.split(self.ln_q(self.q_proj(self.queries)))
        scaled: Tensor = q * float(q.shape[-1]) ** -0.5
        return scaled

    def keys(self, tokens: Tensor) -> Tensor:
        """Keys, which are also the values, (N, H, P, d) of tokens (N, P, D)."""
        return self.split(self.ln_kv(self.kv_proj(tokens)))

    def summary(self, tokens: Tensor) -> Summary:
        """All that pairs need to know of each image, from tokens (N, P, D)."""
        keys = self.keys(tokens)
        logits = (self.query() @ keys.transpose(-1, -2)).to(keys.dtype)
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        return logits.logsumexp(-1), logits.softmax(-1) @ keys.to(logits.dtype)

    def pairs(self, first: Summary, second: Summary) -> Tensor:
        """Combine I first with J second images: (I, J, D), summed over the queries, before the output projection."""
        (l_i, v_i), (l_j, v_j) = first, second
        gap = l_i.permute(1, 0, 2)[:, :, None] - l_j.permute(1, 0, 2)[:, None]  # (H, I, J, M)
        from_i = torch.sigmoid(gap) @ v_i.transpose(0, 1)  # (H, I, J, d)
        from_j = torch.sigmoid(-gap.transpose(1, 2)) @ v_j.transpose(0, 1)  # (H, J, I, d)
        return (from_i - from_j.transpose(1, 2)).permute(1, 2, 0, 3).flatten(2)

    def project(self, pairs: Tensor) -> Tensor:
        """Output projection of sums over M queries (..., D)."""
        return F.linear(pairs, self.out_proj.weight, len(self.queries) * self.out_proj.bias)

    def forward(self, first: Summary, second: Summary) -> Tensor:
        """Relational feature (I, J, D) of every ordered pair."""
        return self.project(self.pairs(first, second))
