"""Tables of the report besides a run's own results: wordings and retrieval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import retrieval_show, wordings

FIGURES = {"map": "mAP", "ndcg": "nDCG", "ari": "ARI", "nmi": "NMI"}


def extras(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tables for the page: title, note, columns, rows of texts, and which columns stand to the left."""
    found = []
    if metrics.get("wordings"):
        found.append(_wordings(metrics["wordings"]))
    if metrics.get("retrieval"):
        found.append(_retrieval(metrics["retrieval"]))
    return found


def _percent(value: Any, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f}" if isinstance(value, int | float) else ""


def _range(low: Any, high: Any, sign: str = "") -> str:
    return f"{_percent(low, sign)} to {_percent(high, sign)}" if isinstance(low, int | float) else ""


def _wordings(result: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        [r["space"], r["wording"], _percent(r["accuracy"]), _range(r["low"], r["high"]), _percent(r["balanced_accuracy"]),
         _percent(r["difference"], "+"), _range(r["difference_low"], r["difference_high"], "+")]
        for r in wordings.rows(result)
    ]  # fmt: skip
    return {
        "title": "The same in other words",
        "note": "Percent of test images. Intervals are of 95 %; where that of a difference from the first holds 0, it may be luck.",
        "columns": ["Classes", "Wording", "Accuracy", "interval", "Balanced", "Difference", "interval"],
        "rows": rows,
        "left": [1],
    }


def _retrieval(result: Mapping[str, Any]) -> dict[str, Any]:
    columns = [c for c in retrieval_show.columns(result) if c in FIGURES or c.startswith("r@")]
    rows = [
        [retrieval_show.NAMES[r["what"]], r["pooling"], r["form"], *(_percent(r.get(c)) for c in columns)]
        for r in retrieval_show.rows(result)
    ]
    return {
        "title": "Retrieval",
        "note": "Percent. mAP and nDCG: how high up what is relevant stands; R@k: queries with something relevant among the first k; "
        "ARI and NMI: k-means groups against classes.",
        "columns": ["Found", "Pooling", "", *(FIGURES.get(c, c.upper()) for c in columns)],
        "rows": rows,
        "left": [1, 2],
    }
