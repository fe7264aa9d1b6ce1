"""The distillation loss that LwF, VR-LwF and ZSCL share: keep a teacher's similarities between images and texts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def distil(teacher: Tensor, student: Tensor, temperature: float = 2.0) -> Tensor:
    """T^2 times the mean over rows of the cross-entropy of softmax(student / T) under softmax(teacher / T).

    A cross-entropy, not a Kullback-Leibler divergence: larger by T^2 times the teacher's entropy, with the same gradient
    T (softmax(student / T) - softmax(teacher / T)) / rows.

    Args:
        teacher: logits (N, M), without gradient.
        student: logits (N, M).
        temperature: T.
    """
    targets = (teacher.detach() / temperature).softmax(-1)
    return F.cross_entropy(student / temperature, targets) * temperature**2


def similarity_loss(
    teacher: Tensor, student: Tensor, temperature: float, image_weight: float, text_weight: float
) -> Tensor:
    """Both directions over one matrix of logits (images, texts): which text for an image, and which image for a text."""
    loss = torch.zeros((), dtype=student.dtype, device=student.device)
    if image_weight:
        loss = loss + image_weight * distil(teacher, student, temperature)
    if text_weight:
        loss = loss + text_weight * distil(teacher.T, student.T, temperature)
    return loss
