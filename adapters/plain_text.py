"""Text features of whole padded prompts, for towers whose tokens see the padding and each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .backbone import FrozenClip
from .blocks import overwrite
from .errors import BackboneError
from .towers import TextTower


def encode_padded(
    backbone: FrozenClip, ids: Tensor, places: Tensor, context: Tensor, *, deep: Sequence[Tensor], start: int
) -> Tensor:
    """Encode padded prompts with a context written in.

    Args:
        backbone: with a native text tower of any kind (causal or not, any attention).
        ids: (C, L); what stands at the context's places does not matter.
        places: (C, M) places of the context in every prompt.
        context: (C, M, W), or (G, C, M, W).
        deep: vectors (n, W) or (G, n, W) written into tokens start..start+n before block 1, 2, ...
        start: tokens before the prompt itself.

    Returns:
        Features (1, C, D) or (G, C, D), not normalised.
    """
    tower = backbone.text
    if tower is None:
        raise BackboneError(f"The text tower of {backbone.spec.name} is not a native transformer.")
    context = context if context.ndim == 4 else context[None]
    groups, classes = context.shape[:2]
    fixed = tower.embed(ids).expand(groups, -1, -1, -1)
    where = places[None, :, :, None].expand(groups, -1, -1, fixed.shape[-1])
    x = fixed.scatter(2, where, context.to(fixed.dtype)).flatten(0, 1)
    x = x + tower.positions.to(x.dtype)
    rows = ids.repeat(groups, 1)
    mask = _mask(tower, rows, x)
    for index, block in enumerate(tower.blocks):
        if 0 < index <= len(deep):
            vectors = deep[index - 1]
            if vectors.ndim == 3:
                vectors = vectors.repeat_interleave(classes, 0) if len(vectors) > 1 else vectors
            x = overwrite(x, vectors, slice(start, start + vectors.shape[-2]))
        x = block(x, attn_mask=mask)
    features = tower.project(_pool(tower, tower.norm(x), rows))
    return features.reshape(groups, classes, -1)


def _mask(tower: TextTower, ids: Tensor, x: Tensor) -> Tensor | None:
    """Return the tower's mask: causal, over the padding (N * H, L, L), or none."""
    if tower.mask is not None or not tower.masks_padding:
        return tower.mask
    heads: Any = tower.blocks[0].attn.num_heads
    padding = (ids == tower.pad_id)[:, None].expand(-1, ids.shape[1], -1)
    mask = torch.zeros_like(padding, dtype=x.dtype).masked_fill(padding, float("-inf"))
    return mask.repeat_interleave(int(heads), 0)


def _pool(tower: TextTower, x: Tensor, ids: Tensor) -> Tensor:
    """Read the feature token of every prompt."""
    if tower.pool == "first":
        return x[:, 0]
    if tower.pool == "last":
        return x[:, -1]
    if tower.pool not in ("argmax", "eos"):
        raise BackboneError(f"A text tower that pools by {tower.pool!r} has no single feature token.")
    ends = ids.argmax(-1) if tower.pool == "argmax" else (ids == tower.end_id).int().argmax(-1)
    return x[torch.arange(len(x), device=x.device), ends]
