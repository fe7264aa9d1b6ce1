"""Batches of several processes seen as one: what a loss compares across images is gathered, with its gradient.

DistributedDataParallel averages gradients over the processes. Where each computes the loss of the joined batch from
gathered features, whose gradient is summed on the way back, that average is exactly the gradient of one process with the
joined batch (as `gather_with_grad` of open_clip and `GatherLayer` of SimCLR do).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """Number of processes that train together; 1 without a group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes in order of rank.

    Args:
        rows: (n, ...); n may differ between processes (an image that cannot be read is left out), the rest may not.

    Returns:
        (sum of n, ...); `rows` itself in one process. Gradients flow back to the process that a row is from.
    """
    if processes() == 1:
        return rows
    mine = torch.tensor([len(rows)], device=rows.device)
    sizes = [torch.zeros_like(mine) for _ in range(processes())]
    dist.all_gather(sizes, mine)
    counts = tuple(int(size) for size in sizes)
    if rows.dtype == torch.bool:  # not every backend gathers truth values
        return _Gather.apply(rows.to(torch.uint8), counts).bool()  # type: ignore[no-untyped-call,no-any-return]
    return _Gather.apply(rows, counts)  # type: ignore[no-untyped-call,no-any-return]


def gathered_lists(items: Sequence[Any]) -> list[list[Any]]:
    """A list of each process, in order of rank; `[items]` in one process."""
    if processes() == 1:
        return [list(items)]
    found: list[Any] = [None] * processes()
    dist.all_gather_object(found, list(items))
    return found


def share(images: int, device: torch.device) -> float:
    """What the mean loss of this process's `images` counts in the average of all processes' losses, where 1 is an equal part.

    Averaged with these weights, means over unequal numbers of images are the mean over all images.
    """
    if processes() == 1:
        return 1.0
    every = torch.tensor([images], device=device)
    dist.all_reduce(every)
    return images * processes() / max(1, int(every))


class _Gather(torch.autograd.Function):
    """Rows of all processes; backward sums the gradients of all and takes the own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        """Gather (n, ...) of each process, padded to the longest on the way."""
        ctx.counts = counts
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Sum over processes, cut to the own rows."""
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        start = sum(ctx.counts[: dist.get_rank()])
        return total[start : start + ctx.counts[dist.get_rank()]], None
