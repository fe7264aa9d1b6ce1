"""Text features without padding: a shared beginning run once, the rest of every prompt packed into one
matrix.

A prompt is [beginning | rest_c]. In a causal tower no beginning token sees a rest, and none sees the padding,
so the beginning (start of text, and a context that all classes share) is run once and the padding never. All
tokens travel as one matrix (G, P + T, W), G beginnings (1, or one per image) each followed by the rests of
all classes; only attention knows the layout. Rests are sorted by length, so those of one length lie together
and need neither padding nor copies of the beginning's keys. Where all rests together are short, one masked product
of all rows costs less than a product for each length. In the last block only the tokens that are read
out (one per prompt) are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .blocks import project_out, project_part, project_qkv, residual
from .towers import TextTower

TOGETHER = 256  # packed rows up to which attention is one masked product: its square is small beside the linear layers


@dataclass(frozen=True)
class Layout:
    """Where the tokens of packed rests lie.

    Attributes:
        start: number of beginning tokens, P.
        buckets: (length, how many rests have it), in packed order.
        place: place of each packed token within its rest (T,).
        ends: packed row of each prompt's last token, in packed order (C,).
        hidden: which rows (of beginning and rests) each row does not see (P + T, P + T); None: too many rows for that.
    """

    start: int
    buckets: tuple[tuple[int, int], ...]
    place: Tensor
    ends: Tensor
    hidden: Tensor | None = None

    @classmethod
    def of(cls, lengths: Sequence[int], start: int, device: torch.device) -> Layout:
        """Lay out rests of the given lengths, which must be sorted."""
        buckets = tuple((length, len(list(group))) for length, group in groupby(lengths))
        counts = torch.tensor(lengths)
        ends = counts.cumsum(0) - 1
        firsts = torch.repeat_interleave(ends + 1 - counts, counts)
        place = torch.arange(len(firsts)) - firsts
        hidden = None
        if len(buckets) > 1 and len(firsts) <= TOGETHER:
            owner = torch.cat([torch.full((start,), -1), firsts])
            order = torch.arange(len(owner))
            seen = (owner[None] == -1) | (owner[None] == owner[:, None])
            hidden = (~seen | (order[None] > order[:, None])).to(device)
        return cls(start, buckets, place.to(device), ends.to(device), hidden)

    @property
    def tokens(self) -> int:
        """Token rows of one pass with one beginning."""
        return self.start + sum(length * count for length, count in self.buckets)


def encode(
    tower: TextTower, layout: Layout, beginning: Tensor, rests: Tensor, deep: Sequence[Tensor] = ()
) -> Tensor:
    """Encode packed prompts.

    Args:
        tower: a causal native text tower.
        layout: of the rests.
        beginning: embeddings (G, P, W), without positions.
        rests: embeddings (T, W) or (G, T, W), without positions.
        deep: vectors (n, W) or (G, n, W) that overwrite the prompt slots 1..n before block 1, 2, ...

    Returns:
        Text features (G, C, D) in packed order, not normalised.
    """
    dtype, groups = tower.dtype, beginning.shape[0]
    positions = tower.positions.to(dtype)
    start = layout.start
    rests = rests.to(dtype) + positions[start + layout.place]
    x = torch.cat([beginning.to(dtype) + positions[:start], rests.expand(groups, -1, -1)], 1)
    ends = start + layout.ends
    last = len(tower.blocks) - 1
    for index, block in enumerate(tower.blocks):
        if 0 < index <= len(deep):
            x = _overwrite(x, deep[index - 1], layout)
        step = _attention if index < last else _last_attention
        kept = None if index < last else x.index_select(1, ends)
        x = residual(block, x, partial(_on_packed, step, block.attn, layout), kept)
    return tower.project(tower.norm(x))


def _on_packed(step: Callable[..., Tensor], attention: Any, layout: Layout, h: Tensor) -> Tensor:
    return step(attention, h, layout)


def _overwrite(x: Tensor, vectors: Tensor, layout: Layout) -> Tensor:
    """Write deep vectors into prompt slots 1..n: those of the beginning, and those that lie in every rest."""
    new = vectors.to(x.dtype).expand(x.shape[0], -1, -1)
    shared = min(new.shape[1], layout.start - 1)
    x = torch.cat([x[:, :1], new[:, :shared], x[:, 1 + shared :]], 1)
    own = new.shape[1] - shared
    if own == 0:
        return x
    rows = (layout.place < own).nonzero().squeeze(1)
    return x.index_copy(1, layout.start + rows, new[:, shared + layout.place[rows]])


def _attention(attention: Any, h: Tensor, layout: Layout) -> Tensor:
    """Causal self-attention of packed prompts (G, P + T, W), all rows."""
    if layout.hidden is not None:
        return _masked(attention, *project_qkv(attention, h), layout.hidden)
    start = layout.start
    (qp, q), (kp, k), (vp, v) = (
        (t[:, :start].transpose(1, 2), t[:, start:]) for t in project_qkv(attention, h)
    )
    out = []
    if start:
        out.append(F.scaled_dot_product_attention(qp, kp, vp, is_causal=True).transpose(1, 2))
    q = q * q.shape[-1] ** -0.5
    to_start = q.transpose(1, 2) @ kp.transpose(
        -1, -2
    )  # one product for all classes: the keys are not copied
    end = 0
    for length, count in layout.buckets:
        rows, end = slice(end, end + length * count), end + length * count
        qb, kb, vb = (_bucket(t[:, rows], count).transpose(2, 3) for t in (q, k, v))
        own = qb @ kb.transpose(-1, -2)
        own = own + torch.full_like(own[0, 0, 0], float("-inf")).triu(1)
        shared = _bucket(to_start[:, :, rows].transpose(1, 2), count).transpose(2, 3)
        out.append(_mix(shared, own, vp, vb))
    return project_out(attention, torch.cat(out, 1).flatten(2))


def _last_attention(attention: Any, h: Tensor, layout: Layout) -> Tensor:
    """The same for the last token of every prompt alone; it sees its whole prompt, so nothing is masked."""
    start = layout.start
    (q,) = project_part(attention, h.index_select(1, start + layout.ends), 0, 1)
    keys, values = project_part(attention, h, 1, 3)
    if layout.hidden is not None:
        return _masked(attention, q, keys, values, layout.hidden[start + layout.ends])
    (kp, k), (vp, v) = ((t[:, :start].transpose(1, 2), t[:, start:]) for t in (keys, values))
    q = q * q.shape[-1] ** -0.5
    to_start = q.transpose(1, 2) @ kp.transpose(-1, -2)
    out, end, done = [], 0, 0
    for length, count in layout.buckets:
        rows, end = slice(end, end + length * count), end + length * count
        here, done = slice(done, done + count), done + count
        kb, vb = (_bucket(t[:, rows], count).transpose(2, 3) for t in (k, v))
        own = q[:, here].unsqueeze(3) @ kb.transpose(-1, -2)
        shared = to_start[:, :, here].unsqueeze(3).transpose(1, 2)
        out.append(_mix(shared, own, vp, vb))
    return project_out(attention, torch.cat(out, 1).flatten(2))


def _masked(attention: Any, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    """Attention of rows (G, R, H, d) to rows (G, K, H, d) but for those hidden (R, K); projected (G, R, W)."""
    q, k, v = (t.transpose(1, 2) for t in (q * q.shape[-1] ** -0.5, k, v))
    weights = (q @ k.transpose(-1, -2)).masked_fill(hidden, float("-inf")).softmax(-1).to(v.dtype)
    return project_out(attention, (weights @ v).transpose(1, 2).flatten(2))


def _bucket(rows: Tensor, count: int) -> Tensor:
    """Split packed rows (G, count * n, ...) of `count` equally long rests into (G, count, n, ...)."""
    return rows.reshape(rows.shape[0], count, rows.shape[1] // count, *rows.shape[2:])


def _mix(shared: Tensor, own: Tensor, shared_values: Tensor, own_values: Tensor) -> Tensor:
    """Softmax over the beginning's and the rest's logits together, then the mix of both kinds of values.

    Args:
        shared: logits to the beginning (G, count, H, n, P).
        own: logits within the rests (G, count, H, n, length).
        shared_values: (G, H, P, d).
        own_values: (G, count, H, length, d).

    Returns:
        (G, count * n, H, d).
    """
    weights = torch.cat([shared, own], -1).softmax(-1).to(own_values.dtype)
    if shared.shape[-1] == 0:
        return torch.matmul(weights, own_values).transpose(2, 3).flatten(1, 2)
    to_start, to_own = weights.tensor_split([shared.shape[-1]], -1)
    mixed = to_start.transpose(1, 2).flatten(2, 3) @ shared_values
    return torch.matmul(to_own, own_values).transpose(2, 3).flatten(1, 2) + mixed.transpose(1, 2)
