"""Gaussians of features: class means and a scatter matrix, accumulated from a stream; solving with a shrunk covariance.

Everything here is float64 and centred before it is squared: CLIP features are unit vectors close to each other, so that
sums of squares minus squares of sums would lose most of their digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PER_CLASS_LIMIT = 2**22  # numbers that scatter matrices of single classes may take together (32 MiB)
ALIKE = 1e-12  # variance of unit vectors up to which they differ by the rounding of float32 alone


@dataclass
class Moments:
    """Sufficient statistics of class means and the scatter around them.

    The scatter is kept in groups of classes: one for each class where that is small, so that a class can be taken out
    again exactly, else one for all.

    Attributes:
        count: (C,), number of samples of each class (not whole where they are shares of samples).
        mean: (C, D).
        scatter: (G, D, D), sum of (f - mean)(f - mean)^T over the samples of a group.
        samples: (G,), number of samples in a group's scatter.
        group: (C,), the group of each class.
    """

    count: Tensor
    mean: Tensor
    scatter: Tensor
    samples: Tensor
    group: Tensor

    @classmethod
    def empty(cls, classes: int, width: int, device: torch.device | str = "cpu", single: bool | None = None) -> Moments:
        """Statistics of no samples; `single`: a group for each class (None: where it fits `PER_CLASS_LIMIT`)."""
        if single is None:
            single = classes * width * width <= PER_CLASS_LIMIT
        groups = classes if single else min(1, classes)
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        group = torch.arange(classes, device=device) if single else torch.zeros(classes, dtype=torch.long, device=device)
        return cls(zeros(classes), zeros(classes, width), zeros(groups, width, width), zeros(groups), group)

    @property
    def total(self) -> Tensor:
        """Scatter within classes over all groups, (D, D)."""
        return self.scatter.sum(0)

    @property
    def size(self) -> float:
        """Number of samples in `total`."""
        return float(self.samples.sum())

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Take in samples: features (N, D), labels (N,). Batches may come in any order and size.

        A batch is centred on its own class means; their distance from the means so far enters with weight
        n m / (n + m), which makes the result that of all samples at once (Chan, Golub and LeVeque 1979).
        """
        x = features.to(self.mean)
        present, owner = torch.unique(labels.to(self.group.device), return_inverse=True)
        added = torch.bincount(owner, minlength=len(present)).to(x)
        mean = torch.zeros(len(present), x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, owner, x)
        mean /= added[:, None]
        x = x - mean[owner]
        before, shift = self.count[present], mean - self.mean[present]
        weight = before * added / (before + added)
        rows, group = torch.cat([x, weight.sqrt()[:, None] * shift]), self.group[present]
        where = torch.cat([group[owner], group])
        for number in sorted(set(group.tolist())):
            own = rows if len(self.scatter) == 1 else rows[where == number]
            self.scatter[number].addmm_(own.T, own)
        self.samples.index_add_(0, group, added)
        self.mean[present] += shift * (added / (before + added))[:, None]
        self.count[present] += added

    def extended(self, classes: int) -> Moments:
        """The same with further, empty classes behind, each with a group of its own."""
        more = Moments.empty(classes, self.mean.shape[1], self.mean.device, single=True)
        more.group += len(self.scatter)
        return Moments(*(torch.cat([getattr(self, name), getattr(more, name)]) for name in self.__dataclass_fields__))

    def kept(self, rows: list[int]) -> tuple[Moments, bool]:
        """The classes `rows` alone, and whether the scatter is exactly theirs (a shared group keeps the others' part)."""
        group = self.group[rows]
        used, renumbered = torch.unique(group, return_inverse=True)
        left = Moments(self.count[rows], self.mean[rows], self.scatter[used], self.samples[used], renumbered)
        return left, bool(abs(left.size - float(left.count.sum())) < 1e-6 * max(left.size, 1.0))

    @classmethod
    def soft(cls, features: Tensor, shares: Tensor) -> Moments:
        """Statistics of samples that belong to several classes by shares: features (N, D), shares (N, C), rows sum to 1."""
        count = shares.sum(0)
        centre = features.mean(0)
        x = features - centre
        mean = shares.T @ x / count.clamp_min(1e-12)[:, None]
        scatter = x.T @ x - (mean * count[:, None]).T @ mean
        group = torch.zeros(len(count), dtype=torch.long, device=x.device)
        return cls(count, mean + centre, scatter[None], count.sum()[None], group)


def varies(scatter: Tensor, samples: float) -> bool:
    """Whether unit vectors with this scatter (D, D) around their means are more than copies of these means."""
    return float(scatter.trace()) > ALIKE * samples


class Precision:
    """A product with the inverse of a covariance, by factorisation.

    Args:
        factor: Cholesky factor (D, D), or eigenvectors where `values` is given; None stands for a product of zero.
        scale: factor of the product.
        values: inverse eigenvalues (D,).
    """

    def __init__(self, factor: Tensor | None, scale: float = 1.0, values: Tensor | None = None) -> None:
        self.factor, self.scale, self.values = factor, scale, values

    @classmethod
    def shrunk(cls, scatter: Tensor, samples: float) -> Precision:
        """D inv(S + tr(S) / (N - 1) I): S (D, D) of N samples, the shrinkage of Kubokawa and Srivastava (2008).

        Without any spread (one sample a class, or copies of one) the product is zero.
        """
        if samples <= 1 or not varies(scatter, samples):
            return cls(None)
        trace, width = float(scatter.trace()), len(scatter)
        ridge = trace / (samples - 1) * torch.eye(width, dtype=scatter.dtype, device=scatter.device)
        return cls(torch.linalg.cholesky(scatter + ridge), scale=width)

    @classmethod
    def plain(cls, covariance: Tensor) -> Precision:
        """Pseudo-inverse of a covariance (D, D), without shrinkage."""
        values, vectors = torch.linalg.eigh(covariance)
        least = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
        if not varies(covariance, 1):
            return cls(None)
        return cls(vectors, values=torch.where(values > least, 1 / values.clamp_min(least), torch.zeros_like(values)))

    def __matmul__(self, right: Tensor) -> Tensor:
        """Product with (D, K)."""
        if self.factor is None:
            return torch.zeros_like(right)
        if self.values is not None:
            return self.factor @ (self.values[:, None] * (self.factor.T @ right))
        return torch.cholesky_solve(right, self.factor) * self.scale


def text_neighbours(bank: Tensor, text: Tensor, nearest: int, repeats: int) -> tuple[Tensor, list[Precision]]:
    """A Gaussian for each class that has only a text, from the stored samples closest to it.

    Args:
        bank: samples (N, D), unit norm.
        text: text features (C, D), unit norm.
        nearest: samples taken for a class, at most N.
        repeats: copies of the text feature that enter the mean beside them.

    Returns:
        Means (C, D), and the precision around each text feature; the classifier uses their average.
    """
    nearest = min(nearest, len(bank))
    means, precisions = [], []
    for row in text:
        close = bank[(bank @ row).topk(nearest).indices]
        means.append((close.sum(0) + repeats * row) / (nearest + repeats))
        spread = close - row
        precisions.append(Precision.shrunk(spread.T @ spread, max(nearest, 2)))
    return torch.stack(means), precisions
