"""The search of a cache model over its sharpness and weight: the whole grid as one program over blocks of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 2**20  # affinities in one block (4 MiB in float32): they stay in the processor's cache for all betas


def by_class(owner: Tensor, classes: int) -> Tensor:
    """Rows of each class side by side: (K, C) row numbers, K that of the largest class, -1 where a class has fewer.

    Args:
        owner: (N,), the class of each row; rows of no class are negative.
        classes: C.
    """
    order = torch.argsort(owner, stable=True)
    order = order[owner[order] >= 0]
    column = owner[order]
    count = torch.bincount(column, minlength=classes)
    rank = torch.arange(len(order), device=owner.device) - (count.cumsum(0) - count)[column]
    table = torch.full((int(count.max()) if len(order) else 0, classes), -1, dtype=torch.long, device=owner.device)
    table[rank, column] = order
    return table


def search_hits(
    features: Tensor, labels: Tensor, keys: Tensor, owner: Tensor, zero_shot: Tensor, betas: Sequence[float], alphas: Sequence[float]
) -> Tensor:
    """Count the right answers of argmax(zero_shot + alpha exp(-beta (1 - f K^T)) L) for every pair of the grid.

    The values L are one-hot, so their product is a sum over the keys of each class. The true class is right where its
    score is above the best other score, which is one maximum over classes; only where they are equal does the order of
    the classes decide, as argmax does.

    Args:
        features: (B, D), unit norm.
        labels: (B,).
        keys: (N, D).
        owner: (N,), the class of each key, negative for none.
        zero_shot: (B, C).
        betas: sharpness values above 0, the rows of the result.
        alphas: weights, its columns.

    Returns:
        (betas, alphas), whole numbers.
    """
    classes = zero_shot.shape[1]
    table = by_class(owner, classes)
    right = torch.zeros(len(betas), len(alphas), dtype=torch.long, device=features.device)
    if not len(features):
        return right
    if not len(table):
        return right + (zero_shot.argmax(-1) == labels).sum()
    used = owner >= 0
    padded = table.numel() <= 4 * int(used.sum())  # else one class is far larger than the others
    ordered, empty, column = keys[used], None, owner[used]
    if padded:
        ordered, empty = keys[table.flatten().clamp_min(0)], table.flatten() < 0
    weight = torch.tensor(alphas, dtype=features.dtype, device=features.device)
    size = max(1, min(len(features), BLOCK // len(ordered)))
    for start in range(0, len(features), size):
        here = slice(start, start + size)
        distance = 1 - features[here] @ ordered.T
        if empty is not None:
            distance.masked_fill_(empty, float("inf"))
        label, base = labels[here, None], zero_shot[here]
        others = base.scatter(1, label, float("-inf"))
        own_base = base.gather(1, label).T
        buffer = torch.empty_like(distance)
        scores = torch.empty(len(weight), *base.shape, dtype=base.dtype, device=base.device)
        for row, beta in enumerate(betas):
            torch.mul(distance, -beta, out=buffer).exp_()
            if padded:
                cache = buffer.view(-1, *table.shape).sum(1)
            else:
                cache = torch.zeros_like(base).index_add_(1, column, buffer)
            own = weight[:, None] * cache.gather(1, label).T + own_base
            torch.mul(weight[:, None, None], cache, out=scores).add_(others)
            best = scores.amax(-1)
            right[row] += (own > best).sum(1)
            tie = own == best
            if bool(tie.any()):
                number, image = tie.nonzero(as_tuple=True)
                full = weight[number, None] * cache[image] + base[image]
                right[row].index_add_(0, number, (full.argmax(-1) == label[image, 0]).long())
    return right
