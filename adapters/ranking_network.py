"""The parts of the ranking-aware adapter: fusion with an instruction, score head and pair head (arXiv 2412.06760)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import attend, project_out, project_part
from .pair_attention import PairAttention, Summary


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), the activation of OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return x * torch.sigmoid(1.702 * x)


class FusionBlock(nn.Module):
    """A pre-norm transformer block; with `cross`, keys and values come from the text through a norm of their own."""

    def __init__(self, width: int, heads: int, quick_gelu: bool, cross: bool = False) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ln_1_kv = nn.LayerNorm(width) if cross else None
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        activation = QuickGELU() if quick_gelu else nn.GELU()
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), activation, nn.Linear(4 * width, width))

    def forward(self, x: Tensor, text: Tensor | None = None) -> Tensor:
        """Tokens (B, P, D), and text (1 or B, L, D) for a cross block, to tokens (B, P, D)."""
        h = self.ln_1(x)
        if self.ln_1_kv is None or text is None:
            q, k, v = project_part(self.attn, h, 0, 3)
        else:
            (q,) = project_part(self.attn, h, 0, 1)
            k, v = (part.expand(len(x), -1, -1, -1) for part in project_part(self.attn, self.ln_1_kv(text), 1, 3))
        mixed = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2).flatten(2)
        x = x + project_out(self.attn, mixed)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Head(nn.Module):
    """`layers` times linear, norm and ReLU, then a linear to one number; Xavier-normal weights."""

    def __init__(self, width: int, layers: int, norm_first: bool = False) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.LayerNorm(width)] if norm_first else []
        for _ in range(layers):
            parts += [nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU()]
        self.body, self.out = nn.Sequential(*parts), nn.Linear(width, 1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (...)."""
        out: Tensor = self.out(self.body(x)).squeeze(-1)
        return out


class PairBranch(nn.Module):
    """Relational attention and the head that turns a pair into a logit; needed in training only."""

    def __init__(self, width: int, heads: int, queries: int) -> None:
        super().__init__()
        self.attention = PairAttention(width, heads, queries)
        self.head = Head(width, 3, norm_first=True)

    def forward(self, first: Summary, second: Summary) -> Tensor:
        """Pair logits (I, J): positive where the first image has more of the attribute."""
        out: Tensor = self.head(self.attention(first, second))
        return out


class RankingNetwork(nn.Module):
    """Image tokens (B, P, D) and text tokens (1 or B, L, D) to one score an image, and to summaries for pairs.

    Args:
        width: D.
        layers: of the cross-modal fusion, and of the encoder behind it.
        heads: of the fusion.
        post_heads: of the encoder behind it.
        pair_heads: of the relational attention.
        learned_tokens: learnable tokens in front of the text.
        queries: relational queries.
        dropout: of the encoder behind the fusion.
        quick_gelu: activation of the fusion.
        scalar_tokens: one number for each learnable token, as released (without effect; see the fact sheet).
        pair_branch: whether there is one.
    """

    def __init__(
        self,
        width: int,
        layers: int = 2,
        heads: int = 8,
        post_heads: int = 8,
        pair_heads: int = 8,
        learned_tokens: int = 32,
        queries: int = 16,
        dropout: float = 0.1,
        quick_gelu: bool = False,
        scalar_tokens: bool = False,
        pair_branch: bool = True,
    ) -> None:
        super().__init__()
        shape = (1, learned_tokens) if scalar_tokens else (1, learned_tokens, width)
        # a full token starts as large as a text token's embedding; a scalar as released
        std = learned_tokens**-0.5 if scalar_tokens and learned_tokens else 0.02
        self.learned_tokens = nn.Parameter(torch.randn(shape) * std)
        self.own = nn.ModuleList(FusionBlock(width, heads, quick_gelu) for _ in range(layers))
        self.cross = nn.ModuleList(FusionBlock(width, heads, quick_gelu, cross=True) for _ in range(layers))
        self.ln_final = nn.LayerNorm(width)
        self.projection = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.post = nn.ModuleList(
            nn.TransformerEncoderLayer(width, post_heads, dim_feedforward=width, dropout=dropout, batch_first=True)
            for _ in range(layers)
        )
        self.ln_score = nn.LayerNorm(width)
        self.score_head = Head(width, 2)
        self.pair: PairBranch | None = PairBranch(width, pair_heads, queries) if pair_branch else None

    def text(self, text: Tensor) -> Tensor:
        """Text tokens (N, L, D) with the learnable tokens in front."""
        learned: Tensor = self.learned_tokens
        if learned.ndim == 2:
            learned = learned[..., None].expand(-1, -1, text.shape[-1])
        return torch.cat([learned.expand(len(text), -1, -1).to(text.dtype), text], 1)

    def fuse(self, tokens: Tensor, text: Tensor) -> Tensor:
        """Fused tokens (B, P, D); `text` comes from `self.text`."""
        x: Tensor = tokens
        for own, cross in zip(self.own, self.cross, strict=True):
            x = cross(own(x), text)
        x = self.ln_final(x) @ self.projection
        for layer in self.post:
            x = layer(x)
        return x

    def score(self, fused: Tensor) -> Tensor:
        """Scores (B,) of fused tokens: their sum, not their mean, goes to the head."""
        out: Tensor = self.score_head(self.ln_score(fused).sum(1))
        return out


def smooth_log(scores: Tensor, targets: Tensor) -> Tensor:
    """Regression loss log(1 + SmoothL1), the mean over the list taken before the logarithm."""
    return torch.log1p(F.smooth_l1_loss(scores, targets))


def ordered(values: Tensor, others: Tensor | None = None) -> Tensor:
    """Targets (I, J) of pairs: 1 where the first value is greater, 0 otherwise (ties and the diagonal, too)."""
    others = values if others is None else others
    return (values[:, None] > others[None]).to(values.dtype)
