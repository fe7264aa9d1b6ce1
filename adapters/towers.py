"""Which tower of a CLIP a weight belongs to, and one view of the text tower, whichever class of open_clip holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TextTower:
    """The parts of a native text transformer.

    CLIP keeps them on itself, CustomTextCLIP in `.text`. `mask` is None for a tower whose tokens see each
    other in both directions: only that says whether a tower is causal, never its name or how it pools.
    """

    embedding: nn.Embedding
    positions: Tensor
    blocks: list[Any]
    norm: nn.Module
    projection: Any
    mask: Tensor | None
    pool: str
    end_id: int
    pad_id: int
    masks_padding: bool

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the blocks' weights; embeddings may be kept in a wider one."""
        dtype: torch.dtype = self.blocks[0].mlp.c_fc.weight.dtype
        return dtype

    @property
    def cuttable(self) -> bool:
        """Whether nothing behind a prompt's end changes its feature: causal, and read at the end token.

        A causal tower that reads its last position reads the padding, which sees the whole prompt.
        """
        return self.mask is not None and self.pool in ("argmax", "eos")

    def embed(self, ids: Tensor) -> Tensor:
        """Return token embeddings (..., W) of ids (...), without positions."""
        vectors: Tensor = self.embedding(ids)
        return vectors.to(self.dtype)

    def end(self, ids: list[int]) -> int:
        """Return the place of the token a prompt is read from (its end of text)."""
        if self.pool == "eos":
            return ids.index(self.end_id) if self.end_id in ids else 0
        return ids.index(max(ids))

    def project(self, x: Tensor) -> Tensor:
        """Turn pooled tokens (..., W) into text features (..., D), not normalised."""
        if self.projection is None:
            return x
        if isinstance(self.projection, nn.Linear):
            projected: Tensor = self.projection(x)
            return projected
        return torch.matmul(x, self.projection)


def tower_of(name: str) -> str:
    """Tower that a parameter of an open_clip model belongs to, by its name: "image", "text", or "" for scale and bias."""
    if name in ("logit_scale", "logit_bias"):
        return ""
    return "image" if name.startswith("visual.") else "text"


def text_tower(model: Any) -> TextTower | None:
    """Return the view of a model's text tower, or None where there is no native transformer to look at.

    None: Hugging Face towers, and CoCa, which reads a class token appended behind the padding.
    """
    text = getattr(model, "text", model)
    blocks = getattr(getattr(text, "transformer", None), "resblocks", None)
    if blocks is None or getattr(text, "cls_emb", None) is not None or not hasattr(text, "token_embedding"):
        return None
    pool = getattr(text, "text_pool_type", None) or getattr(text, "pool_type", "argmax")
    end = getattr(text, "text_eos_id", None)
    return TextTower(
        embedding=text.token_embedding,
        positions=text.positional_embedding,
        blocks=list(blocks),
        norm=text.ln_final,
        projection=text.text_projection,
        mask=text.attn_mask,
        pool=str(pool),
        end_id=int(getattr(text, "eos_id", 2) if end is None else end),
        pad_id=int(getattr(text, "pad_id", 0)),
        masks_padding=bool(getattr(text, "use_pad_mask", False)),
    )
