"""What is kept of answers to many images about many classes: they are gone through in blocks of rows, float64 each.

Of 21,000 images and as many classes all probabilities at once would be 3.5 GB, and every step of a computation as much again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Logits = Tensor | Iterable[Tensor]  # scores (N, C), whole or in parts (n, C) one below the other
CELLS = 2**21  # of a block
TOP = 5


@dataclass(frozen=True)
class Answers:
    """The probabilities (N, C) of N images in short.

    Attributes:
        predicted: (N,) the likeliest class.
        confidence: (N,) its probability, float64.
        near: (N,) whether the true class is among the `most` likeliest.
        most: 5, or C - 1 where that is less.
        classes: C.
        finite: whether all of them are numbers.
    """

    predicted: Tensor
    confidence: Tensor
    near: Tensor
    most: int
    classes: int
    finite: bool


def probabilities(logits: Tensor) -> Tensor:
    """Softmax in float64: (N, C) -> (N, C) on the CPU."""
    return logits.detach().cpu().double().softmax(dim=-1)


def blocks(logits: Logits) -> Iterator[tuple[slice, Tensor]]:
    """Some rows after the others, with their place among all of them."""
    start = 0
    for part in [logits] if isinstance(logits, Tensor) else logits:
        for block in part.detach().split(max(1, CELLS // max(1, part.shape[1]))):
            yield slice(start, start + len(block)), block
            start += len(block)


def answers(logits: Logits, labels: Tensor, temperature: float = 1.0) -> Answers:
    """Go through logits (N, C), divided by a temperature, with true classes (N,)."""
    labels = labels.cpu()
    # laid out beforehand: small results between large blocks would keep the memory of each from being used again
    predicted, confidence = torch.zeros(len(labels), dtype=torch.long), torch.zeros(len(labels), dtype=torch.float64)
    near, finite, most, classes = torch.zeros(len(labels), dtype=torch.bool), True, 0, 0
    for rows, block in blocks(logits):
        found = of_probabilities(probabilities(block / temperature), labels[rows])
        predicted[rows], confidence[rows], near[rows] = found.predicted, found.confidence, found.near
        finite, most, classes = finite and found.finite, found.most, found.classes
        del found
    return Answers(predicted, confidence, near, most, classes, finite)


def of_probabilities(probability: Tensor, labels: Tensor) -> Answers:
    """The same from probabilities (N, C).

    Raises:
        ValueError: the shapes do not fit.
    """
    if probability.ndim != 2 or labels.shape != probability.shape[:1]:
        raise ValueError(
            f"Probabilities must be (N, C) and labels (N,); got {tuple(probability.shape)} and {tuple(labels.shape)}."
        )
    classes = probability.shape[1]
    most = min(TOP, classes - 1)
    confidence, predicted = probability.max(dim=-1)
    near = (probability.topk(most, dim=-1).indices == labels[:, None]).any(dim=-1)
    return Answers(predicted, confidence, near, most, classes, bool(torch.isfinite(probability).all()))
