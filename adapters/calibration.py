"""Probabilities that mean what they say: a temperature, and a threshold below which no answer is given, both from val.

Source: Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv 1706.04599, section 4.2 (temperature scaling);
Geifman & El-Yaniv 2017, arXiv 1705.08500 (selective classification: coverage and the error of what is answered).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .answers import answers, blocks
from .errors import LimpetError

if TYPE_CHECKING:
    from torch import Tensor

POINTS = 200  # points of the stored curve; all thresholds where val has fewer images
BOUNDS = (0.01, 100.0)  # temperatures searched


@dataclass(frozen=True)
class Cut:
    """A threshold and what it does on the validation images.

    Attributes:
        threshold: confidence in [0, 1] below which no answer is given.
        coverage: share of validation images that are answered, in [0, 1].
        error: share of the answered ones that are wrong, in [0, 1].
    """

    threshold: float
    coverage: float
    error: float


@dataclass(frozen=True)
class Calibration:
    """What was fitted on the validation images.

    Attributes:
        temperature: the logits are divided by it, above 0.
        images: number of validation images.
        classes: number of classes that were possible answers.
        curve: thresholds from 0 upwards with coverage and error; see `Cut`.
    """

    temperature: float
    images: int
    classes: int
    curve: tuple[Cut, ...]

    def cut(self, coverage: float | None = None, error: float | None = None) -> Cut:
        """Choose a threshold for a stated coverage or error on the validation images.

        Args:
            coverage: answer at least this share of images, as surely as possible.
            error: of what is answered, at most this share wrong; as many answers as possible.

        Raises:
            LimpetError: No threshold reaches the error, or a value is outside [0, 1].
        """
        asked = coverage if coverage is not None else error
        if asked is None or not 0 <= asked <= 1:
            raise LimpetError(f"A coverage or an error is a share between 0 and 1; got {asked}.")
        if coverage is not None:
            return max((c for c in self.curve if c.coverage >= coverage - 1e-6), key=lambda c: c.threshold)
        reached = [c for c in self.curve if c.error <= asked + 1e-6]
        if not reached:
            best = min(self.curve, key=lambda c: c.error)
            raise LimpetError(
                f"An error of {100 * asked:g} % cannot be reached on the {self.images} validation images: at best "
                f"{100 * best.error:.1f} % of the answers are wrong, where {100 * best.coverage:.0f} % of the images are answered."
            )
        return max(reached, key=lambda c: c.coverage)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        curve = [[round(v, 6) for v in (c.threshold, c.coverage, c.error)] for c in self.curve]
        return {"temperature": self.temperature, "images": self.images, "classes": self.classes, "curve": curve}

    @classmethod
    def from_dict(cls, stored: Any) -> Calibration | None:
        """Back from JSON; None where there is none, or it is not of this form."""
        if not isinstance(stored, Mapping):
            return None
        try:
            curve = tuple(Cut(*(float(v) for v in row)) for row in stored["curve"])
            found = cls(float(stored["temperature"]), int(stored["images"]), int(stored["classes"]), curve)
        except (KeyError, TypeError, ValueError, OverflowError):  # the last: infinity, or a number with hundreds of digits
            return None
        shares = all(0 <= share <= 1 for cut in curve for share in (cut.threshold, cut.coverage, cut.error))
        return found if BOUNDS[0] <= found.temperature <= BOUNDS[1] and curve and shares else None


def calibrate(logits: Tensor | Sequence[Tensor], labels: Tensor) -> Calibration | None:
    """Fit temperature and curve on validation answers; None without any.

    Args:
        logits: (N, C), whole or in parts one below the other.
        labels: (N,), 0..C-1.
    """
    if not len(labels):
        return None
    temperature = fit_temperature(logits, labels)
    found = answers((block.cpu().double() for _, block in blocks(logits)), labels, temperature)
    right = found.predicted == labels.cpu()
    curve = risk_coverage(found.confidence.tolist(), right.tolist())
    return Calibration(temperature, len(labels), found.classes, tuple(curve))


def fit_temperature(logits: Tensor | Sequence[Tensor], labels: Tensor) -> float:
    """The temperature with the least negative log-likelihood of labels (N,) under softmax(logits / T), logits (N, C).

    It is 1 where nothing can be fitted: a single class, or no answer wrong (the likelihood then grows for ever as T
    falls) or none better than chance (it grows as T rises).
    """
    from scipy.optimize import minimize_scalar

    true = labels.cpu().long()
    if all(block.shape[1] < 2 or bool((block.argmax(-1).cpu() == true[rows]).all()) for rows, block in blocks(logits)):
        return 1.0

    def loss(log_temperature: float) -> float:
        temperature = float(np.exp(log_temperature))
        parts = []
        for rows, block in blocks(logits):
            logp = (block.cpu().double() / temperature).log_softmax(-1)
            parts.append(logp[range(len(logp)), true[rows]])
        return -float(torch.cat(parts).mean())

    low, high = np.log(BOUNDS[0]), np.log(BOUNDS[1])
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-8})
    at_edge = min(found.x - low, high - found.x) < 1e-3
    return 1.0 if at_edge or loss(float(found.x)) > loss(0.0) else float(np.exp(found.x))


def risk_coverage(confidence: Sequence[float], right: Sequence[bool]) -> list[Cut]:
    """Thresholds with coverage and error of answered images (confidence at or above), from answering all to the surest.

    Args:
        confidence: (N,) in [0, 1].
        right: (N,), whether the answer is right.
    """
    order = np.argsort(-np.asarray(confidence), kind="stable")
    sure, hits = np.asarray(confidence)[order], np.cumsum(np.asarray(right, dtype=np.int64)[order])
    ends = np.append(np.flatnonzero(np.diff(sure)), len(sure) - 1)  # equal confidences are answered together
    if len(ends) > POINTS:
        ends = ends[np.unique(np.linspace(0, len(ends) - 1, POINTS).round().astype(int))]
    cuts = [Cut(_down(float(sure[n])), (n + 1) / len(sure), 1 - int(hits[n]) / (n + 1)) for n in map(int, ends)]
    cuts[-1] = Cut(0.0, cuts[-1].coverage, cuts[-1].error)  # answering everything needs no threshold
    return cuts[::-1]


def _down(value: float) -> float:
    """Six digits, rounded down, so that the image itself stays above its threshold."""
    return float(np.floor(value * 1e6) / 1e6)
