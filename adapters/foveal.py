"""Foveal attention: a bias on what the class token attends to, rising towards the centre of a region.

Source: FALIP (ECCV 2024, arXiv 2407.05578). The bias enters the class token's row of the attention logits of the upper
blocks; no pixel is changed and nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import blocks
from .errors import LimpetError

if TYPE_CHECKING:
    from .backbone import FrozenClip
    from .backbone_spec import BackboneSpec

EDGE = 1e-4  # patches: a corner so near to a patch border lies on it (boxes travel as float32)
FLAT = 1e-6  # keeps a region of one value at full strength, as published


def foveal_problem(spec: BackboneSpec) -> str | None:
    """Say in a sentence why attention cannot be steered on such a backbone, or None; callable before weights load."""
    problem = blocks.image_problem(spec)
    if problem is None and spec.image_pool != "tok":
        problem = f"The image tower of {spec.name} averages its patches; steering attention needs one that reads its class token."
    return problem


def grid_of(backbone: FrozenClip) -> tuple[int, int]:
    """Rows and columns of patches of a native ViT tower."""
    rows, columns = backbone.model.visual.grid_size
    return int(rows), int(columns)


def box_cells(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patches (K, rows, columns), boolean, that boxes cover.

    Args:
        boxes: (K, 4) left, top, right, bottom as shares of the network input, cut to [0, 1].
        grid: rows and columns of patches.

    A patch that an edge touches counts; an edge exactly on a border belongs to the patch before it (as published).
    """
    covered = []
    for low, high, size in ((1, 3, grid[0]), (0, 2, grid[1])):
        ends = boxes[:, [low, high]].detach().double().cpu().clamp(0, 1) * size
        first, last = (torch.ceil(ends - EDGE).clamp(min=1) - 1).unbind(-1)
        place = torch.arange(size)
        covered.append((place >= first[:, None]) & (place <= last[:, None]))
    return covered[0][:, :, None] & covered[1][:, None, :]


def mask_cells(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patches (K, rows, columns), boolean, of which masks (K, H, W) cover any part."""
    return F.adaptive_max_pool2d(masks.detach().float().cpu()[:, None], grid)[:, 0] > 0


def foveal_rows(cells: Tensor, alpha: float, sigma: float) -> Tensor:
    """Bias (K, 1 + rows * columns), float64, of the class token's row for regions (K, rows, columns), boolean.

    alpha (g - min g + 1e-6) / (max g - min g + 1e-6) with g = exp(-d^2 / (2 sigma^2)), d the distance in patches to the
    middle of the region; 0 at the class token and outside. A region of one value gets alpha throughout, an empty one 0.
    """
    rows = torch.zeros(len(cells), 1 + cells.shape[1] * cells.shape[2], dtype=torch.float64)
    for row, region in zip(rows, cells, strict=True):
        places = region.nonzero().double()
        if not len(places):
            continue
        distance = ((places - places.mean(0)) ** 2).sum(-1)
        g = torch.exp(-distance / (2 * sigma**2))
        value = alpha * (g - g.min() + FLAT) / (g.max() - g.min() + FLAT)
        row[1:][region.flatten()] = value
    return rows


def regional_features(
    backbone: FrozenClip, images: Tensor, rows: Sequence[Tensor], chosen: Sequence[int], heads: Sequence[int] | None = None
) -> Tensor:
    """Image features of several regions of each image; what does not depend on the region is computed once.

    Below the first steered block everything is shared, and in that block all rows but the class token's, since only it
    sees the bias; K regions take 9 + 3 K block passes of a 12-block tower steered in its last four, less what the last
    block leaves out, instead of 12 K.

    Args:
        backbone: with a native ViT tower that pools its class token.
        images: network input (B, 3, H, W).
        rows: for each image the biases (K_i, 1 + P) of its regions.
        chosen: blocks that are steered, ascending.
        heads: heads that are steered; None for all.

    Returns:
        Features (sum of K_i, D), not normalised, image by image.

    Raises:
        BackboneError: the tower cannot be steered.
        LimpetError: a head does not exist, or rows do not fit the tower's tokens.
    """
    tower = backbone.model.visual.transformer.resblocks
    x = blocks.embed_image(backbone, images)
    _check(rows, x)
    first = chosen[0]
    x = blocks.run(tower[:first], x)
    counts = torch.tensor([len(row) for row in rows])
    owner = torch.repeat_interleave(torch.arange(len(rows)), counts).to(x.device)
    bias = torch.cat([row.to(x.device, x.dtype) for row in rows])[:, None, None]
    if heads is not None:
        bias = bias * head_mask(tower[first].attn.num_heads, heads).to(x)[None, :, None, None]
    x = _first_block(tower[first], x, owner, counts, bias, last=first + 1 == len(tower))
    if first + 1 < len(tower):
        full = bias.new_zeros(*bias.shape[:2], x.shape[1], x.shape[1])
        full[:, :, :1] = bias
        steered = set(chosen)
        seams = blocks.Seams(bias=lambda layer: full if layer in steered else None)
        x = blocks.run(tower[first + 1 :], x, keep=slice(0, 1), seams=seams, first=first + 1)
    return blocks.pool_image(backbone, x)


def head_mask(count: int, heads: Sequence[int]) -> Tensor:
    """1 at the chosen heads (count,), else 0.

    Raises:
        LimpetError: a head does not exist.
    """
    mask = torch.zeros(count)
    for head in heads:
        if not -count <= head < count:
            raise LimpetError(f"method.heads names head {head}, but a block of this tower has {count}: 0 to {count - 1}.")
        mask[head] = 1
    return mask


def _first_block(block: Any, x: Tensor, owner: Tensor, counts: Tensor, bias: Tensor, last: bool) -> Tensor:
    """The first steered block: tokens (B, L, W) -> (N, L, W), or (N, 1, W) behind the last block.

    The class token asks once for each region; the patches ask once for each image.
    """
    most = int(counts.max()) if len(counts) else 0
    slot = torch.cat([torch.arange(int(n)) for n in counts]).to(x.device) if most else owner
    asked = bias.new_zeros(len(x), bias.shape[1], most, x.shape[1])
    asked[owner, :, slot] = bias[:, :, 0]
    attention = block.attn
    q, k, v = (part.transpose(1, 2) for part in blocks.project_qkv(attention, block.ln_1(x)))
    steered = blocks.attend(q[:, :, :1].expand(-1, -1, most, -1), k, v, asked)

    def through(kept: Tensor, heads: Tensor) -> Tensor:
        merged = heads.transpose(1, 2).flatten(2)
        kept = kept + block.ls_1(blocks.project_out(attention, merged))
        passed: Tensor = kept + block.ls_2(block.mlp(block.ln_2(kept)))
        return passed

    pooled = through(x[:, :1].expand(-1, most, -1), steered)[owner, slot][:, None]
    if last:
        return pooled
    rest = through(x[:, 1:], blocks.attend(q[:, :, 1:], k, v))
    return torch.cat([pooled, rest[owner]], 1)


def _check(rows: Sequence[Tensor], tokens: Tensor) -> None:
    if len(rows) != len(tokens):
        raise LimpetError(f"Regions were given for {len(rows)} images, and there are {len(tokens)}.")
    odd = next((row for row in rows if row.shape[-1] != tokens.shape[1]), None)
    if odd is not None:
        raise LimpetError(
            f"A region's bias has {odd.shape[-1]} entries and the tower {tokens.shape[1]} tokens: make it for this tower's grid."
        )
