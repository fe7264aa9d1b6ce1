"""Parts of a run's page that are drawn: the learning curve, the reliability diagram, and pictures that a task adds."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import csv_files
from .errors import RunError

WIDTH, HEIGHT = 400, 170  # of a curve, in the units of its drawing
SHARES = (1.0, 0.9, 0.8, 0.7, 0.5)
_POINTS = 400  # most points of a curve


@dataclass(frozen=True)
class Picture:
    """A picture that a task adds to the page of a run.

    Attributes:
        title: heading above it.
        caption: a sentence or two on how to read it; plain text.
        content: a PNG as bytes, or an SVG as text (drawn by Limpet itself: it is put into the page as it is).
    """

    title: str
    caption: str
    content: bytes | str

    @property
    def svg(self) -> str | None:
        """The drawing, where it is one."""
        return self.content if isinstance(self.content, str) else None

    @property
    def png(self) -> str | None:
        """The PNG in base64, where it is one."""
        return base64.b64encode(self.content).decode() if isinstance(self.content, bytes) else None


@dataclass(frozen=True)
class Curve:
    """A line over the epochs, ready to be drawn into WIDTH x HEIGHT.

    Attributes:
        title: what is shown.
        points: "x,y x,y ...".
        x_ticks: (x, text).
        y_ticks: (y, text).
        alone: whether there is a single point, which a line would not show.
    """

    title: str
    points: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    alone: bool


def learning_curves(folder: Path) -> list[Curve]:
    """Training loss and, where it was measured, the headline on validation images, from a run's log/metrics.csv."""
    try:
        rows = csv_files.read_rows(folder / "log" / "metrics.csv")
    except RunError:  # the log is a help: a damaged one leaves its part out
        return []
    titles = {
        "loss": "Training loss",
        "val_accuracy": "Right on validation images, %",
        "val_spearman": "Spearman on validation images",
        "test_accuracy": "Right on the test images that the epoch was chosen on, %",
        "test_spearman": "Spearman on the test images that the epoch was chosen on",
    }
    curves = []
    for key, title in titles.items():
        found = [(_float(row.get("epoch")), _float(row.get(key))) for row in rows]
        points = [(x + 1, 100 * y if key.endswith("accuracy") else y) for x, y in found if x is not None and y is not None]
        if points:
            curves.append(curve(title, points))
    return curves


def curve(title: str, points: Sequence[tuple[float, float]]) -> Curve:
    """Scale points (x, y) to the drawing, y upwards."""
    step = -(-len(points) // _POINTS)
    points = [*points[::step], points[-1]] if (len(points) - 1) % step else points[::step]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    left, right = min(xs), max(*xs, min(xs) + 1e-9)
    low, high = min(ys), max(ys)
    margin = 0.06 * (high - low) or max(abs(high), 1e-9) * 0.1
    low, high = low - margin, high + margin

    def place(x: float, y: float) -> tuple[float, float]:
        return (x - left) / (right - left) * WIDTH, HEIGHT - (y - low) / (high - low) * HEIGHT

    text = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
    middle = round((left + right) / 2)
    x_ticks = [(place(x, low)[0], f"{x:g}") for x in dict.fromkeys((left, middle, max(xs)))]
    y_ticks = [(place(left, y)[1], f"{y:.3g}") for y in dict.fromkeys((min(ys), (min(ys) + max(ys)) / 2, max(ys)))]
    return Curve(title, text, x_ticks, y_ticks, len(points) == 1)


def reliability(rows: Sequence[Mapping[str, str]], column: str = "probability", bins: int = 10) -> list[dict[str, float]]:
    """Mean confidence, share right and number of images in equal bins of the confidence in `column`; [] without values."""
    sums = [[0.0, 0.0, 0.0] for _ in range(bins)]
    count = 0
    for row in rows:
        probability = _float(row.get(column))
        if probability is None:
            continue
        count += 1
        place = sums[min(int(probability * bins), bins - 1)]
        place[0] += 1
        place[1] += probability
        place[2] += is_right(row)
    return [
        {"images": int(n), "confidence": p / n, "accuracy": r / n, "size": (n / count) ** 0.5} for n, p, r in sums if n
    ]


def surest(rows: Sequence[Mapping[str, str]]) -> list[tuple[str, int, str]]:
    """(share, images, percent right) where only the surest share of the images is answered."""
    column = "calibrated" if rows and all(row.get("calibrated") for row in rows) else "probability"
    ordered = sorted(rows, key=lambda row: -(_float(row.get(column)) or 0.0))
    found: list[tuple[str, int, str]] = []
    for share in SHARES:
        kept = ordered[: max(1, round(share * len(ordered)))] if ordered else []
        if kept:
            right = sum(is_right(row) for row in kept) / len(kept)
            found.append((f"{100 * share:.0f} %", len(kept), f"{100 * right:.1f}"))
    return found


def is_right(row: Mapping[str, Any]) -> bool:
    """Whether a row of predictions.csv was answered rightly."""
    return str(row["correct"]).strip().lower() in {"1", "true", "yes"}


def _float(text: Any) -> float | None:
    try:
        number = float(text)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
