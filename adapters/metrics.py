"""Metrics of classification, from logits or probabilities (N, C) and labels (N,); all in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .answers import Answers, Logits, answers, of_probabilities
from .errors import LimpetError

ECE_BINS = 15


@dataclass(frozen=True)
class ClassScore:
    """How one class fared: its label, its test images, and the share answered rightly (None without images)."""

    label: int
    images: int
    accuracy: float | None


def classification_metrics(logits: Logits, labels: Tensor) -> dict[str, float | int]:
    """The headline metrics of one label space, from logits (N, C) and labels (N,); see `scores`."""
    return measured(answers(logits, labels), labels)


def scores(probability: Tensor, labels: Tensor) -> dict[str, float | int]:
    """The headline metrics of one label space, see `measured`.

    Args:
        probability: (N, C), rows sum to one.
        labels: (N,) true classes, 0..C-1.
    """
    return measured(_in_short(probability, labels), labels)


def measured(found: Answers, labels: Tensor) -> dict[str, float | int]:
    """Return the headline metrics of one label space.

    Args:
        found: the answers in short.
        labels: (N,) true classes, 0..C-1.

    Returns:
        `accuracy`, `balanced_accuracy` and `macro_f1` (means over the classes that have images), `ece`
        (15 bins), `top5` (or `topK` with K = C - 1 < 5; where C >= 3), `images`, `classes`.

    Raises:
        LimpetError: If there are no images, or the answers are not finite.
        ValueError: If shapes or labels do not fit.
    """
    labels = _checked(found, labels)
    from sklearn.metrics import f1_score, recall_score

    true, predicted = labels.numpy(), found.predicted.numpy()
    present = np.unique(true)
    over_present: dict[str, Any] = {"labels": present, "average": "macro", "zero_division": 0}
    result: dict[str, float | int] = {
        "accuracy": float((true == predicted).mean()),
        "balanced_accuracy": float(recall_score(true, predicted, **over_present)),
        "macro_f1": float(f1_score(true, predicted, **over_present)),
        "ece": expected_error(found, labels),
    }
    if found.classes >= 3:
        result[f"top{found.most}"] = float(found.near.double().mean())
    return {**result, "images": len(labels), "classes": found.classes}


def calibration_error(probability: Tensor, labels: Tensor, bins: int = ECE_BINS) -> float:
    """Expected calibration error of probabilities (N, C), see `expected_error`."""
    return expected_error(_in_short(probability, labels), labels, bins)


def expected_error(found: Answers, labels: Tensor, bins: int = ECE_BINS) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over equal bins of confidence."""
    labels = _checked(found, labels)
    if found.classes == 1:
        return 0.0
    from torchmetrics.functional.classification import multiclass_calibration_error

    # Only the greatest probability, and whether it is the right one, counts: the answer given against all others.
    pair = torch.stack([found.confidence, torch.zeros_like(found.confidence)], dim=1)
    wrong = (found.predicted != labels).long()
    return float(multiclass_calibration_error(pair, wrong, num_classes=2, n_bins=bins, norm="l1"))


def per_class(predicted: Tensor, labels: Tensor, classes: int) -> list[ClassScore]:
    """Return accuracy and number of images of each of `classes` classes, in label order."""
    true, answer = labels.cpu().numpy(), predicted.cpu().numpy()
    images = np.bincount(true, minlength=classes)
    right = np.bincount(true[true == answer], minlength=classes)
    return [
        ClassScore(label, int(images[label]), float(right[label] / images[label]) if images[label] else None)
        for label in range(classes)
    ]


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> NDArray[np.int64]:
    """Return the confusion matrix (C, C): rows true classes, columns answers."""
    flat = labels.cpu().numpy().astype(np.int64) * classes + predicted.cpu().numpy()
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def harmonic_mean(base: float, new: float) -> float:
    """Harmonic mean of base and new accuracy; 0 where one of them is."""
    return 2 * base * new / (base + new) if base > 0 and new > 0 else 0.0


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1); None for a single value."""
    array = np.asarray(values, np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None


def _in_short(probability: Tensor, labels: Tensor) -> Answers:
    return of_probabilities(probability.detach().cpu().double().clamp(0, 1), labels.cpu())


def _checked(found: Answers, labels: Tensor) -> Tensor:
    labels = labels.detach().cpu().long()
    if labels.shape != found.predicted.shape:
        raise ValueError(f"There must be one label an answer; got {tuple(labels.shape)} and {tuple(found.predicted.shape)}.")
    if not len(labels):
        raise LimpetError("There are no test images of these classes to measure on.")
    if int(labels.min()) < 0 or int(labels.max()) >= found.classes:
        raise ValueError(f"Labels must be 0..{found.classes - 1}; got {int(labels.min())}..{int(labels.max())}.")
    if not found.finite:
        raise LimpetError(
            "Some answers are not numbers: the training diverged. Lower optim.lr and fit again."
        )
    return labels
