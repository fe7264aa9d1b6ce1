"""One vector an image for retrieval: the class token, its patches pooled, regions, or several crops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import RecipeError
from .tokens import image_token_features

if TYPE_CHECKING:
    from .adapter import Adapter, Batch

LEVELS = 3  # scales of regions, R-MAC's
OVERLAP = 0.4  # of neighbouring regions at the largest scale, R-MAC's
PATCHES = ("mean", "max", "rmac")  # poolings of the patch tokens


def regions(height: int, width: int, levels: int = LEVELS) -> list[tuple[int, int, int]]:
    """Square regions of a grid: (top, left, side), scale by scale.

    At scale l their side is 2 min(height, width) / (l + 1), rounded down. At the largest, as many lie along the longer side
    as bring neighbours nearest to an overlap of 40 %; each smaller scale has one more along both sides. Regions that
    rounding makes equal stay, and scales without a whole place are left out.

    Source: R-MAC, Tolias, Sicre and Jegou 2016 (arXiv 1511.05879), section 4.2.
    """
    short, long = min(height, width), max(height, width)
    more = 0
    if long > short:
        overlaps = [1 - (long - short) / (count - 1) / short for count in range(2, 8)]
        more = 1 + min(range(len(overlaps)), key=lambda i: abs(overlaps[i] - OVERLAP))
    found = []
    for level in range(1, levels + 1):
        side = 2 * short // (level + 1)
        if side:
            down = _starts(height, side, level + (more if height > width else 0))
            across = _starts(width, side, level + (more if width > height else 0))
            found += [(top, left, side) for top in down for left in across]
    return found


def _starts(length: int, side: int, count: int) -> list[int]:
    """Where `count` regions along a side begin, spread evenly and rounded down."""
    step = (length - side) / (count - 1) if count > 1 else 0.0
    return [math.floor(i * step) for i in range(count)]


def regional_max(tokens: Tensor, grid: tuple[int, int], levels: int = LEVELS) -> Tensor:
    """R-MAC (B, D) of tokens (B, P, D) on a grid: the maximum over each region, brought to length 1, summed."""
    places = tokens.reshape(len(tokens), *grid, tokens.shape[2])
    total = tokens.new_zeros(len(tokens), tokens.shape[2])
    for top, left, side in regions(*grid, levels):
        total += F.normalize(places[:, top : top + side, left : left + side].amax((1, 2)), dim=-1)
    return total


def grid_of(backbone: Any, places: int) -> tuple[int, int]:
    """Rows and columns of `places` patch tokens: of the shape of the network's input, as nearly as they can be."""
    size = backbone.spec.preprocessing["size"]
    height, width = (size, size) if isinstance(size, int) else size
    wanted = math.sqrt(places * height / width)
    rows = min((r for r in range(1, places + 1) if places % r == 0), key=lambda r: abs(r - wanted))
    return rows, places // rows


@dataclass(frozen=True)
class MultiCrop:
    """A picklable transform from a PIL image to six views (6, 3, H, W): the whole, its corners and its centre.

    Attributes:
        transform: from a PIL image to network input.
        share: height and width of a crop, as a share of the image's.
    """

    transform: Any
    share: float = 0.7

    def __call__(self, image: Any) -> Tensor:
        """The views of an image."""
        width, height = image.size
        across, down = max(1, round(width * self.share)), max(1, round(height * self.share))
        right, bottom = width - across, height - down
        corners = ((0, 0), (right, 0), (0, bottom), (right, bottom), (right // 2, bottom // 2))
        views = [image, *(image.crop((x, y, x + across, y + down)) for x, y in corners)]
        return torch.stack([self.transform(view) for view in views])


def check_pooling(adapter: Adapter, kind: str) -> None:
    """Refuse patches with an adapter whose image features are not the frozen tower's.

    Raises:
        RecipeError: says what to use.
    """
    from .adapter import Adapter

    changed = type(adapter).encode_image is not Adapter.encode_image
    if kind in PATCHES and changed:
        raise RecipeError(
            f"Pooling '{kind}' reads patches of the frozen image tower, and '{adapter.name}' answers with image features of "
            "its own. Use class or multi_crop."
        )


@torch.no_grad()
def pooled(adapter: Adapter, batch: Batch, kind: str) -> Tensor:
    """One raw vector (B, D) an image of a batch, not normalised, on the adapter's device.

    Args:
        adapter: in evaluation mode.
        batch: `feature` (B, D) for "class"; `image` (B, 3, H, W), or its views (B, V, 3, H, W) for "multi_crop".
        kind: "class", "mean", "max", "rmac" or "multi_crop" (mean of the views' features, each of length 1).
    """
    if kind == "class":
        return _own(adapter, batch)
    if kind == "multi_crop":
        images = batch["image"].to(adapter.backbone.device)
        views = F.normalize(_own(adapter, {"image": images.flatten(0, 1)}), dim=-1)
        return views.reshape(*images.shape[:2], -1).mean(1)
    return pooled_patches(adapter, batch, [kind])[kind]


@torch.no_grad()
def pooled_patches(adapter: Adapter, batch: Batch, kinds: Sequence[str]) -> dict[str, Tensor]:
    """Several of the poolings in `PATCHES` from one pass through the image tower: (B, D) each, not normalised."""
    tokens = image_token_features(adapter.backbone, batch["image"].to(adapter.backbone.device))
    ways = {
        "mean": lambda: tokens.mean(1),
        "max": lambda: tokens.amax(1),
        "rmac": lambda: regional_max(tokens, grid_of(adapter.backbone, tokens.shape[1])),
    }
    return {kind: ways[kind]() for kind in kinds}


def _own(adapter: Adapter, batch: Batch) -> Tensor:
    """The adapter's image features: raw ones where it has none of its own."""
    from .adapter import Adapter

    return adapter.image_feature(batch) if type(adapter).encode_image is Adapter.encode_image else adapter.encode_image(batch)
