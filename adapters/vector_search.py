"""Exact search for the nearest of many vectors: blocks of products, and only what can still matter is looked at again."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray

BLOCK = 16384  # vectors whose products with the queries are held at once
_SINGLE = 4  # times as many for a single query
_AGAIN = 65536  # rows computed again at once

Numbers = NDArray[np.int64]


class ExactSearch:
    """The vectors with the greatest inner products with queries, without any approximation.

    Products in float32 pick candidates, with a margin for their rounding; these are computed again in float64, always in the
    same way, so that equal vectors have equal scores whatever stands around them. Of equal scores the lower number is first.

    Args:
        vectors: (N, D) float32, also a memory map.
        block: vectors at a time.
        longest: length that none of them exceeds, where it is known; else they are all measured once.
    """

    def __init__(self, vectors: NDArray[np.float32], block: int = BLOCK, longest: float | None = None) -> None:
        self.vectors, self.block = vectors, block
        if longest is None:
            parts = (vectors[start : start + block] for start in range(0, len(vectors), block))
            squares = (float(np.einsum("nd,nd->n", part, part, dtype=np.float64).max()) for part in parts)
            longest = max(squares, default=0.0) ** 0.5
        self._longest = longest

    def __call__(self, queries: NDArray[np.floating], k: int) -> tuple[Numbers, NDArray[np.float64]]:
        """Numbers (Q, k) and products (Q, k) of the best `k` vectors for queries (Q, D), best first; all N if there are fewer."""
        exact = np.ascontiguousarray(queries, np.float64)
        rough = exact.astype(np.float32)
        k = min(k, len(self.vectors))
        if k < 1 or not len(rough):
            return np.zeros((len(rough), max(k, 0)), np.int64), np.zeros((len(rough), max(k, 0)))
        # twice the error of a float32 product of D terms (Higham's bound), and that of rounding the query
        margin = (exact.shape[1] + 1) * float(np.finfo(np.float32).eps) * np.linalg.norm(exact, axis=1) * self._longest
        candidates = [_Candidates(k, float(m)) for m in margin]
        # products of a single query are few: larger blocks, fewer calls
        block = self.block * _SINGLE if len(rough) == 1 else self.block
        for start in range(0, len(self.vectors), block):
            products = _products(rough, self.vectors[start : start + block])
            if start == 0 and k <= products.shape[1]:
                for one, kth in zip(candidates, np.partition(products, -k, axis=1)[:, -k].tolist(), strict=True):
                    one.raise_bar(kth)
            bars = np.array([one.bar for one in candidates], np.float32)
            places = np.flatnonzero(products >= bars[:, None])
            if len(places):
                rows, columns = np.divmod(places, products.shape[1])
                ends = np.searchsorted(rows, np.arange(len(rough) + 1))
                for q in np.unique(rows).tolist():
                    candidates[q].add(products[q], columns[ends[q] : ends[q + 1]], start)
        found = [self._settle(query, one.numbers, k) for query, one in zip(exact, candidates, strict=True)]
        return np.stack([numbers for numbers, _ in found]), np.stack([scores for _, scores in found])

    def _settle(self, query: NDArray[np.float64], numbers: Numbers, k: int) -> tuple[Numbers, NDArray[np.float64]]:
        """The best `k` of some vectors by their products in float64."""
        parts = [numbers[i : i + _AGAIN] for i in range(0, len(numbers), _AGAIN)]
        # each row multiplied and summed by itself: the same row gives the same number wherever it stands
        scores = np.concatenate([(self.vectors[part].astype(np.float64) * query).sum(1) for part in parts])
        best = np.lexsort((numbers, -scores))[:k]
        return numbers[best], scores[best]


def _products(queries: NDArray[np.float32], part: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inner products (Q, n) in float32; of several queries by PyTorch, whose matrix product is the faster one."""
    if len(queries) == 1:
        return np.asarray(queries @ part.T)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # it is only read
        return np.asarray((torch.from_numpy(queries) @ torch.from_numpy(part).T).numpy())


class _Candidates:
    """Vectors that may be among the best `k` of one query.

    Attributes:
        bar: products below it no longer matter (float32).
        numbers: the candidates, lowest number first.
    """

    def __init__(self, k: int, margin: float) -> None:
        self.k, self.margin = k, margin
        self.bar = np.float32(-np.inf)
        self.numbers: Numbers = np.zeros(0, np.int64)
        self._products: NDArray[np.float32] = np.zeros(0, np.float32)

    def raise_bar(self, kth: float) -> None:
        """There are `k` products of at least `kth`: what is surely below it cannot be among the best."""
        self.bar = np.nextafter(np.float32(kth - self.margin), np.float32(-np.inf))

    def add(self, products: NDArray[np.float32], places: Numbers, start: int) -> None:
        """Take in the places of a block whose products reach the bar, and raise the bar."""
        if not len(places):
            return
        self.numbers = np.concatenate([self.numbers, places + start])
        self._products = np.concatenate([self._products, products[places]])
        if len(self.numbers) < self.k:
            return
        self.raise_bar(float(np.partition(self._products, -self.k)[-self.k]))
        kept = self._products >= self.bar
        self.numbers, self._products = self.numbers[kept], self._products[kept]
