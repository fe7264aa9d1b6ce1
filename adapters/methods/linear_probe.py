"""Linear probe: logistic regression on frozen image features (Radford et al. 2021, arXiv 2103.00020, appendix A.3)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..adapter import Adapter, Batch, NewClass
from ..errors import LimpetError, NeedsImages

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec
    from ..classes import ClassSet

SWEEP = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)
BISECTIONS = 8
FALLBACK_C = 0.316  # CLIP's README, for CIFAR-100 and ViT-B/32
ABSENT = -1e4  # logit of a class without a single training image


@dataclass
class Config:
    """Settings of the linear probe; the defaults are the few-shot protocol of CoOp's released baseline.

    Attributes:
        normalize: use unit-norm features. The released protocol uses raw ones; the best C differs by orders of magnitude.
        C: inverse regularisation strength; None: chosen on val by a sweep over 1e6..1e-6 and 8 bisection steps.
        refit: fit again on train and val together with the chosen C (CLIP's own protocol; CoOp's baseline does not).
        max_iter: L-BFGS iterations.
    """

    normalize: bool = False
    C: float | None = None
    refit: bool = False
    max_iter: int = 1000


class LinearProbe(Adapter):
    """logits = W f + b with W, b from scikit-learn's L2-regularised logistic regression on plain (not augmented) views."""

    selects_again = False  # the fit needs the images of all classes
    weight: Tensor
    bias: Tensor

    @classmethod
    def new_class(cls, config: Config, spec: BackboneSpec) -> NewClass:
        """A row of W comes from images."""
        return "images"

    @classmethod
    def per_class(cls, config: Config, spec: BackboneSpec) -> tuple[str, ...]:
        """W and b have a row a class."""
        return ("weight", "bias")

    def build(self) -> None:
        """Register W (C, D) and b (C)."""
        count, width = len(self.classes), self.backbone.embed_dim
        self.register_buffer("weight", torch.zeros(count, width, dtype=self.dtype))
        self.register_buffer("bias", torch.zeros(count, dtype=self.dtype))
        self._data: tuple[NDArray[np.float64], NDArray[np.int64]] | None = None

    def data_sized(self) -> tuple[str, ...]:
        """Classes may have been added before saving."""
        return ("weight", "bias")

    def fit_closed_form(self, batches: Iterable[Batch]) -> None:
        """Keep the training features; the fit itself waits for C."""
        self._data = self._collect(batches)
        if not len(self._data[0]):
            raise LimpetError("The linear probe has no samples: it needs at least one training image.")

    def select(self, batches: Sequence[Batch]) -> None:
        """Choose C by accuracy on the validation batches, then fit.

        Sweep over `SWEEP`, then from [c/10, 10c] around the best keep the better end and move the other to the middle in
        log C, eight times; on a tie the smaller C is kept.
        """
        if self._data is None:
            raise LimpetError("The linear probe has no training features: call fit_closed_form first.")
        features, labels = self._data
        C = self.config.C
        if C is None and batches:
            held_out = self._collect(batches)

            def accuracy(c: float) -> float:
                W, b = self._fit(features, labels, c)
                return float(((held_out[0] @ W.T + b).argmax(1) == held_out[1]).mean())

            peak = SWEEP[int(np.argmax([accuracy(c) for c in SWEEP]))]
            left, right = math.log10(peak) - 1, math.log10(peak) + 1
            best = left
            at_left, at_right = accuracy(10**left), accuracy(10**right)
            for _ in range(BISECTIONS):
                middle = (left + right) / 2
                if at_left < at_right:
                    best, left = right, middle
                    at_left = accuracy(10**left)
                else:
                    best, right = left, middle
                    at_right = accuracy(10**right)
            C = 10**best
            if self.config.refit:
                features = np.concatenate([features, held_out[0]])
                labels = np.concatenate([labels, held_out[1]])
        elif C is None:
            C = FALLBACK_C
            self.notes.append(f"There are no validation images to choose C on; C = {FALLBACK_C} was used.")
        W, b = self._fit(features, labels, C)
        self.weight.copy_(torch.from_numpy(W))
        self.bias.copy_(torch.from_numpy(b))
        self.selected = {"C": float(C)}
        self._data = None

    def _collect(self, batches: Iterable[Batch]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        held = [(self._input(b).cpu().numpy(), np.asarray(b["label"].cpu())) for b in batches]
        held = held or [(np.zeros((0, self.weight.shape[1])), np.zeros(0, np.int64))]
        return np.concatenate([x for x, _ in held]).astype(np.float64), np.concatenate([y for _, y in held])

    def _input(self, batch: Batch) -> Tensor:
        features = self.image_feature(batch)
        return F.normalize(features, dim=-1) if self.config.normalize else features

    def _fit(
        self, features: NDArray[np.float64], labels: NDArray[np.int64], C: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """W (C, D) and b (C) over all classes; a class without images gets a constant low logit."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        count = len(self._trained)
        W, b = np.zeros((count, features.shape[1])), np.full(count, ABSENT)
        present = np.unique(labels)
        if len(present) == 1:
            b[present] = 0.0
            return W, b
        model = LogisticRegression(C=C, max_iter=self.config.max_iter, solver="lbfgs", random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the protocol stops at max_iter
            model.fit(features, labels)
        if len(present) == 2:  # scikit-learn stores one row: the log-odds of the second class
            W[present[1]], b[present] = model.coef_[0], (0.0, model.intercept_[0])
        else:
            W[present], b[present] = model.coef_, model.intercept_
        return W, b

    def logits(self, batch: Batch) -> Tensor:
        """W f + b (B, C)."""
        rows = self.trained_rows()
        return self._input(batch) @ self.weight[rows].T + self.bias[rows]

    def linear_head(self) -> tuple[Tensor, Tensor, bool]:
        """W and b."""
        rows = self.trained_rows()
        return self.weight[rows], self.bias[rows], self.config.normalize

    def check_classes(self, classes: ClassSet) -> None:
        """Only classes with a row of W can be answered about."""
        missing = self.untrained(classes)
        if missing:
            raise NeedsImages(f"The linear probe has no weights for '{missing[0]}': it needs images of the new classes.")

    def add_classes(self, classes: ClassSet, batches: Iterable[Batch] | None = None) -> None:
        """Imprint a row for each new class: the direction of its mean feature at the mean norm of the present rows.

        The new logits are not calibrated against the old ones; a note says so.
        """
        new = self.untrained(classes)
        if new and batches is None:
            raise NeedsImages(f"The linear probe needs images of '{new[0]}' to add it.")
        if new:
            features, labels = self._collect(batches or ())
            fitted = self.bias > ABSENT
            norm, rows = self.weight[fitted].norm(dim=1).mean(), []
            if not norm > 0:
                raise LimpetError(
                    f"The linear probe was fitted to images of one class, which gives no weights to compare '{new[0]}' with. Fit it "
                    "again, with images of every class."
                )
            for name in new:
                own = features[labels == classes.index(name)]
                if not len(own):
                    raise NeedsImages(f"The linear probe needs images of '{name}' to add it; none were given.")
                rows.append(F.normalize(torch.from_numpy(own.mean(0)).to(self.weight), dim=0) * norm)
            self.weight = torch.cat([self.weight, torch.stack(rows)])
            self.bias = torch.cat([self.bias, self.bias[fitted].mean().expand(len(new))])
            self._trained = (*self._trained, *new)
            self.notes.append(f"Rows of {', '.join(new)} are imprinted, not trained: their scores are not calibrated.")
        super().add_classes(classes, batches)
