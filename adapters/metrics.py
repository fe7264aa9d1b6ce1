"""Metrics of classification, from logits or probabilities (N, C) and labels (N,); all in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import LimpetError

ECE_BINS = 15


@dataclass(frozen=True)
class ClassScore:
    """How one class fared: its label, its test images, and the share answered rightly (None without images)."""

    label: int
    images: int
    accuracy: float | None


def probabilities(logits: Tensor) -> Tensor:
    """Softmax in float64: (N, C) -> (N, C) on the CPU."""
    return logits.detach().cpu().double().softmax(dim=-1)


def classification_metrics(logits: Tensor, labels: Tensor) -> dict[str, float | int]:
    """The headline metrics of one label space, from logits (N, C) and labels (N,); see `scores`."""
    return scores(probabilities(logits), labels)


def per_class_accuracy(logits: Tensor, labels: Tensor) -> tuple[list[int], list[float]]:
    """Number of images and accuracy of each class, in label order; accuracy 0 where a class has no image."""
    found = per_class(logits.argmax(dim=-1), labels, logits.shape[1])
    return [score.images for score in found], [score.accuracy or 0.0 for score in found]


def scores(probability: Tensor, labels: Tensor) -> dict[str, float | int]:
    """Return the headline metrics of one label space.

    Args:
        probability: (N, C), rows sum to one (see `probabilities` for logits).
        labels: (N,) true classes, 0..C-1.

    Returns:
        `accuracy`, `balanced_accuracy` and `macro_f1` (means over the classes that have images), `ece`
        (15 bins), `top5` (or `topK` with K = C - 1 < 5; where C >= 3), `images`, `classes`.

    Raises:
        LimpetError: If there are no images, or the answers are not finite.
        ValueError: If shapes or labels do not fit.
    """
    probability, labels = _checked(probability, labels)
    count, classes = probability.shape
    from sklearn.metrics import f1_score, recall_score

    true, predicted = labels.numpy(), probability.argmax(dim=-1).numpy()
    present = np.unique(true)
    over_present: dict[str, Any] = {"labels": present, "average": "macro", "zero_division": 0}
    result: dict[str, float | int] = {
        "accuracy": float((true == predicted).mean()),
        "balanced_accuracy": float(recall_score(true, predicted, **over_present)),
        "macro_f1": float(f1_score(true, predicted, **over_present)),
        "ece": calibration_error(probability, labels),
    }
    if classes >= 3:
        k = min(5, classes - 1)
        best = probability.topk(k, dim=-1).indices
        result[f"top{k}"] = float((best == labels[:, None]).any(dim=-1).double().mean())
    return {**result, "images": count, "classes": classes}


def calibration_error(probability: Tensor, labels: Tensor, bins: int = ECE_BINS) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over equal bins of confidence."""
    probability, labels = _checked(probability, labels)
    if probability.shape[1] == 1:
        return 0.0
    from torchmetrics.functional.classification import multiclass_calibration_error

    classes = probability.shape[1]
    return float(
        multiclass_calibration_error(probability, labels, num_classes=classes, n_bins=bins, norm="l1")
    )


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


def _checked(probability: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    probability, labels = probability.detach().cpu().double(), labels.detach().cpu().long()
    if probability.ndim != 2 or labels.shape != probability.shape[:1]:
        raise ValueError(
            f"Probabilities must be (N, C) and labels (N,); got {tuple(probability.shape)} and {tuple(labels.shape)}."
        )
    if not len(labels):
        raise LimpetError("There are no test images of these classes to measure on.")
    if int(labels.min()) < 0 or int(labels.max()) >= probability.shape[1]:
        raise ValueError(
            f"Labels must be 0..{probability.shape[1] - 1}; got {int(labels.min())}..{int(labels.max())}."
        )
    if not torch.isfinite(probability).all():
        raise LimpetError(
            "Some answers are not numbers: the training diverged. Lower optim.lr and fit again."
        )
    return probability.clamp(0, 1), labels
