"""Metrics of an order: scores (N,) against values (N,), per category and averaged, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RESAMPLES = 1000
_PAIRS = 3000  # images of a category whose pairs are counted all at once


def order_metrics(scores: Array, values: Array) -> dict[str, float] | None:
    """Spearman, Pearson, Kendall's tau-b and pairwise accuracy of one category; None where all values are equal.

    An order without any difference in the scores correlates with nothing: 0.
    """
    if len(values) < 2 or np.ptp(values) == 0:
        return None
    from scipy import stats

    if np.ptp(scores) == 0:
        return {"spearman": 0.0, "pearson": 0.0, "kendall": 0.0, "pairwise_accuracy": 0.5}
    return {
        "spearman": float(stats.spearmanr(scores, values).statistic),
        "pearson": float(stats.pearsonr(scores, values).statistic),
        "kendall": float(stats.kendalltau(scores, values, variant="b").statistic),
        "pairwise_accuracy": pairwise_accuracy(scores, values),
    }


def pairwise_accuracy(scores: Array, values: Array) -> float:
    """Share of the pairs with different values that the scores put in the right order; equal scores count half."""
    right = total = 0.0
    for start in range(0, len(values), _PAIRS):
        rows = slice(start, start + _PAIRS)
        above = values[rows, None] > values[None]
        total += above.sum()
        right += _right(scores[rows, None], scores[None])[above].sum()
    return float(right / total) if total else float("nan")


def unit_metrics(estimates: Array, values: Array) -> dict[str, float]:
    """Mean absolute error and, where all values are whole numbers, the share of estimates that round to them."""
    found = {"mae": float(np.abs(estimates - values).mean())}
    if np.array_equal(values, np.round(values)):
        rounded = np.clip(np.round(estimates), values.min(), values.max())
        found["rounded_mae"] = float(np.abs(rounded - values).mean())
        found["rounded_accuracy"] = float((rounded == values).mean())
    return found


def averaged(each: Sequence[dict[str, float] | None]) -> dict[str, float]:
    """Mean over the categories that have an order; what only some of them have (MAE) is left out."""
    have = [one for one in each if one is not None]
    keys = [key for key in (have[0] if have else ()) if all(key in one for one in have)]
    return {key: float(np.mean([one[key] for one in have])) for key in keys}


def intervals(
    scores: Sequence[Array], values: Sequence[Array], seed: int = 0, resamples: int = RESAMPLES, level: float = 0.95
) -> dict[str, list[float]]:
    """Percentile bootstrap intervals of Spearman and pairwise accuracy, averaged over categories.

    Args:
        scores: of each category.
        values: of each category.
        seed: of the resampling.
        resamples: how many; images are drawn with repetition within their category.
        level: probability that the interval covers.

    Returns:
        {"spearman": [low, high], "pairwise_accuracy": [low, high]}; empty without an order.
    """
    rng = np.random.default_rng(seed)
    draws: dict[str, list[Array]] = {"spearman": [], "pairwise_accuracy": []}
    for s, y in zip(scores, values, strict=True):
        if len(y) < 3 or np.ptp(y) == 0:
            continue
        chosen = rng.integers(0, len(y), (resamples, len(y)))
        draws["spearman"].append(_spearman(s[chosen], y[chosen]))
        if len(y) <= _PAIRS:
            counts = np.apply_along_axis(np.bincount, 1, chosen, minlength=len(y)).astype(np.float64)
            above = (y[:, None] > y[None]).astype(np.float64)
            right = above * _right(s[:, None], s[None])
            with np.errstate(invalid="ignore"):
                draws["pairwise_accuracy"].append(((counts @ right) * counts).sum(1) / ((counts @ above) * counts).sum(1))
    tail = 50 * (1 - level)
    found = {}
    for key, one in draws.items():
        if one:
            each = np.stack(one)  # a draw of equal values alone has no order
            known = np.isfinite(each).sum(0)
            means = np.nansum(each, 0)[known > 0] / known[known > 0]
            if len(means):
                low, high = np.percentile(means, [tail, 100 - tail])
                found[key] = [float(low), float(high)]
    return found


def displacement(scores: Array, values: Array) -> Array:
    """How far each image is from its place: rank by score less rank by value, as a share of N - 1, in [-1, 1]."""
    from scipy.stats import rankdata

    return np.asarray((rankdata(scores) - rankdata(values)) / max(len(values) - 1, 1))


def _right(one: Array, other: Array) -> Array:
    return np.where(one > other, 1.0, np.where(one == other, 0.5, 0.0))


def _spearman(scores: Array, values: Array) -> Array:
    """Spearman of each row."""
    from scipy.stats import rankdata

    x, y = rankdata(scores, axis=1), rankdata(values, axis=1)
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    below = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((x * y).sum(1) / below)
