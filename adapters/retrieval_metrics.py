"""Metrics of rankings: R@k, mean average precision and nDCG, each in [0, 1], from scores and what is relevant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]


class RankingTally:
    """Adds up rankings, some queries at a time.

    R@k is the share of queries with a relevant item among the first k; average precision and nDCG (gain 1 for a relevant
    item, log2 discount) are over the whole ranking. Equal scores stand in the order of the items. Queries without any
    relevant item have no such figures: they are counted as `unmatched` and left out.

    Args:
        ks: values of k.
    """

    def __init__(self, ks: Sequence[int]) -> None:
        self.ks = tuple(ks)
        self._rows: list[NDArray[np.float64]] = []
        self._unmatched = 0

    def add(self, scores: Scores, relevant: Mask, excluded: Mask | None = None) -> None:
        """Add queries.

        Args:
            scores: (Q, N), higher is nearer.
            relevant: (Q, N).
            excluded: (Q, N), items that do not take part in a query's ranking (the query itself).
        """
        if excluded is not None:
            scores, relevant = np.where(excluded, -np.inf, scores), relevant & ~excluded
        order = np.argsort(-scores, axis=1, kind="stable")
        hits = np.take_along_axis(relevant, order, axis=1)
        total = hits.sum(1)
        self._unmatched += int((total == 0).sum())
        hits, total = hits[total > 0].astype(np.float64), total[total > 0]
        if not len(hits):
            return
        places = np.arange(1, hits.shape[1] + 1)
        precision = (hits.cumsum(1) / places * hits).sum(1) / total
        discount = 1 / np.log2(places + 1)
        ndcg = hits @ discount / discount.cumsum()[total - 1]
        first = hits.argmax(1)
        self._rows.append(np.column_stack([precision, ndcg, *((first < k) for k in self.ks)]))

    def result(self) -> dict[str, Any]:
        """{"map", "ndcg", "r@k" for each k, "queries", "unmatched"}; no figures without a matched query."""
        if not self._rows:
            return {"queries": 0, "unmatched": self._unmatched}
        rows = np.concatenate(self._rows)
        names = ["map", "ndcg", *(f"r@{k}" for k in self.ks)]
        means = {name: float(value) for name, value in zip(names, rows.mean(0), strict=True)}
        return {**means, "queries": len(rows), "unmatched": self._unmatched}
