"""Activations below the first trained block, remembered for images that come again.

Known by the content of the network input, so an augmented view is its own entry and a stale answer is impossible.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .blocks import run

if TYPE_CHECKING:
    from .backbone import FrozenClip


class BlockMemory:
    """Tokens (L, W) that enter a block, per image; when full, further images are computed each time.

    Args:
        size: room in bytes; 0 keeps nothing.
    """

    def __init__(self, size: int) -> None:
        self.size, self.used = size, 0
        self._kept: dict[tuple[bytes, int, torch.dtype, str], Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockMemory:
        return BlockMemory(self.size)

    def __len__(self) -> int:
        return len(self._kept)

    def image_features(self, clip: FrozenClip, images: Tensor, first: int) -> Tensor:
        """Image features (B, D), not normalised; blocks below `first` run only for images not seen before.

        Args:
            clip: with a native ViT tower whose blocks below `first` are frozen.
            images: network input (B, 3, H, W).
            first: the lowest trained block.
        """
        visual: Any = clip.model.visual
        blocks = list(visual.transformer.resblocks)
        images = images.to(clip.device, clip.dtype)
        x = self._entering(visual, blocks[:first], images, first)
        keep = slice(0, 1) if visual.pool_type == "tok" else None
        pooled: Tensor = visual._pool(run(blocks[first:], x, keep=keep))[0]
        return pooled if visual.proj is None else torch.matmul(pooled, visual.proj)

    @torch.no_grad()
    def _entering(self, visual: Any, blocks: list[Any], images: Tensor, first: int) -> Tensor:
        format_ = torch.get_autocast_dtype(images.device.type) if torch.is_autocast_enabled(images.device.type) else images.dtype
        keys = [(_digest(image), first, format_, str(images.device)) for image in images]
        fresh = [i for i, key in enumerate(keys) if key not in self._kept]
        if not fresh:
            return torch.stack([self._kept[key] for key in keys])
        computed = run(blocks, visual._embeds(images[fresh]))
        if len(fresh) == len(keys):
            x = computed
        else:
            new = dict(zip(fresh, computed, strict=True))
            x = torch.stack([new[i] if i in new else self._kept[key] for i, key in enumerate(keys)])
        for i, tokens in zip(fresh, computed, strict=True):
            bytes_ = tokens.numel() * tokens.element_size()
            if keys[i] not in self._kept and self.used + bytes_ <= self.size:
                self._kept[keys[i]] = tokens.clone()
                self.used += bytes_
        return x


def _digest(image: Tensor) -> bytes:
    plain = image.detach().cpu().contiguous().view(torch.uint8)
    return hashlib.blake2b(plain.numpy().data, digest_size=16).digest()
