"""Objectives of contrastive training: from similarities of images and texts, and which pairs belong together, to a loss."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Objective = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def infonce(cosines: Tensor, positives: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """Symmetric InfoNCE (CLIP, Radford et al. 2021), its targets spread evenly over all positives of a row or column.

    Args:
        cosines: (B, T), images against texts.
        positives: (B, T) bool; a row or column without any is left out.
        log_scale: logarithm of the inverse temperature, a scalar.
        bias: not used by this objective.

    Returns:
        The mean of both directions; 0 is the least it can be (the entropy of the targets is taken off).
    """
    logits = log_scale.exp() * cosines
    return (_one_way(logits, positives) + _one_way(logits.T, positives.T)) / 2


def _one_way(logits: Tensor, positives: Tensor) -> Tensor:
    counts = positives.sum(-1)
    rows = counts > 0
    targets = positives[rows] / counts[rows, None].to(logits.dtype)
    return (F.cross_entropy(logits[rows], targets.to(logits.dtype)) - counts[rows].to(logits.dtype).log().mean()).float()


def siglip(cosines: Tensor, positives: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """Sigmoid loss: every pair is a yes-or-no question (SigLIP, Zhai et al. 2023, algorithm 1), averaged over images.

    Args:
        cosines: (B, T), images against texts.
        positives: (B, T) bool.
        log_scale: logarithm of the inverse temperature, a scalar.
        bias: added to every logit, a scalar (-10 at the start).
    """
    logits = log_scale.exp() * cosines + bias
    signs = 2 * positives.to(logits.dtype) - 1
    return -F.logsigmoid(signs * logits).sum(-1).mean().float()


OBJECTIVES: dict[str, Objective] = {"infonce": infonce, "siglip": siglip}
