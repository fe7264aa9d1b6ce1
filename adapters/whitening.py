"""PCA with whitening: features decorrelated and brought to equal variance, ridge-regularised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import LimpetError

Array = NDArray[np.float64]
RIDGE = 1e-3
_RANK = 1e-10  # of the largest variance: smaller ones are rounding


@dataclass(frozen=True)
class Whitening:
    """x -> (x - mean) @ basis, fitted on training features.

    With covariance U L U' of these, the basis is U (L + r I)^(-1/2), r being `ridge` times the mean variance. With ridge 0
    the covariance of the whitened training features is the identity; with a ridge it is L / (L + r): directions of little
    variance, which few images measure badly, are raised less.

    Attributes:
        mean: (D,).
        basis: (D, K), directions of greatest variance first.
    """

    mean: Array
    basis: Array

    @classmethod
    def fit(cls, features: NDArray[np.floating], dimensions: int | None = None, ridge: float = RIDGE) -> Whitening:
        """Fit on features (N, D).

        Args:
            features: of training images.
            dimensions: how many directions to keep; None for all that vary.
            ridge: share of the mean variance that is added to each, >= 0.

        Raises:
            LimpetError: fewer than two images, or all features equal.
        """
        x = np.asarray(features, np.float64)
        if len(x) < 2:
            raise LimpetError(f"Whitening is fitted on training images, and there are {len(x)}: at least 2 are needed.")
        mean = x.mean(0)
        variances, directions = np.linalg.eigh((x - mean).T @ (x - mean) / (len(x) - 1))
        variances, directions = variances[::-1], directions[:, ::-1]
        kept = variances > _RANK * max(variances[0], 0.0)
        if variances[0] <= 0 or not kept.any():
            raise LimpetError("Whitening is fitted on training images, and the features of all of them are equal.")
        count = int(kept.sum()) if dimensions is None else min(dimensions, int(kept.sum()))
        scale = 1 / np.sqrt(variances[:count] + ridge * variances.clip(0).mean())
        return cls(mean, directions[:, :count] * scale)

    def __call__(self, features: NDArray[np.floating]) -> Array:
        """Whitened features (N, K), float64, of features (N, D)."""
        return np.asarray((np.asarray(features, np.float64) - self.mean) @ self.basis)


def unit(features: NDArray[np.floating]) -> Array:
    """Rows brought to length 1; a row of zeros stays."""
    x = np.asarray(features, np.float64)
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))
