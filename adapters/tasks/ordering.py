"""Ordering: what is measured of an order, and the columns of its predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..ordering_metrics import averaged, displacement, intervals, order_metrics, unit_metrics

if TYPE_CHECKING:
    from ..adapter import Batch
    from ..backbone import FrozenClip
    from ..classes import ClassSet
    from ..ordering_adapter import OrderingAdapter
    from ..session import Session

HEADLINE = "spearman"


@dataclass
class Outcome:
    """Scores of an adapter for one set of images.

    Attributes:
        classes: the categories; an order is one within a category.
        scores: (N,), float64, on the CPU, in the units of the values where there are such.
        values: (N,), the true values.
        labels: (N,), categories, counted in `classes`.
        paths: N paths.
        in_units: (N,), whether a score is in the units of the values.
    """

    classes: ClassSet
    scores: Tensor
    values: Tensor
    labels: Tensor
    paths: list[str]
    in_units: Tensor

    def __post_init__(self) -> None:
        self._metrics: dict[str, Any] | None = None

    def _rows(self, label: int) -> np.ndarray[Any, Any]:
        return np.flatnonzero(self.labels.numpy() == label)

    def per_class(self) -> list[tuple[str, int, dict[str, float] | None]]:
        """(category, images, metrics) in the order of the categories; None where there is no order."""
        found = []
        scores, values = self.scores.numpy(), self.values.numpy()
        for label, name in enumerate(self.classes.names):
            rows = self._rows(label)
            one = order_metrics(scores[rows], values[rows])
            if one is not None and bool(self.in_units[rows].all()):
                one |= unit_metrics(scores[rows], values[rows])
            found.append((name, len(rows), one))
        return found

    def metrics(self) -> dict[str, Any]:
        """Means over the categories that have an order, with 95 % intervals (bootstrap over images)."""
        if self._metrics is None:
            each = self.per_class()
            have = [name for name, _, one in each if one is not None]
            rows = [self._rows(label) for label, name in enumerate(self.classes.names) if name in have]
            scores, values = self.scores.numpy(), self.values.numpy()
            self._metrics = {
                **averaged([one for _, _, one in each]),
                "confidence": intervals([scores[r] for r in rows], [values[r] for r in rows]),
                "images": len(self.paths),
                "classes": len(self.classes),
                "ordered_classes": len(have),
            }
        return self._metrics

    def predictions(self) -> list[dict[str, Any]]:
        """One row an image, category by category in the order found, greatest first."""
        found = []
        scores, values = self.scores.numpy(), self.values.numpy()
        for label, name in enumerate(self.classes.names):
            rows = self._rows(label)
            if not len(rows):
                continue
            away = displacement(scores[rows], values[rows])
            for rank, place in enumerate(np.argsort(-scores[rows], kind="stable"), start=1):
                n = int(rows[place])
                found.append({
                    "category": name, "rank": rank, "path": self.paths[n], "score": round(float(scores[n]), 6),
                    "value": float(values[n]), "displacement": round(float(away[place]), 6),
                })  # fmt: skip
        return found


@torch.no_grad()
def evaluate(adapter: OrderingAdapter, batches: Iterable[Batch], classes: ClassSet) -> Outcome:
    """Score every image of some batches."""
    was_training = adapter.training
    adapter.eval()
    device = adapter.backbone.device
    scores: list[tuple[Tensor, Tensor]] = []
    values: list[Tensor] = []
    labels: list[Tensor] = []
    paths: list[str] = []
    try:
        with adapter.answering(classes):
            for batch in batches:
                moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
                scores.append(adapter.units(adapter.scores(moved).double().cpu(), adapter.rows(moved)))
                values.append(batch["value"].double().cpu())
                labels.append(batch["label"].cpu())
                paths.extend(batch["path"])
    finally:
        adapter.train(was_training)
    if not scores:
        nothing = torch.zeros(0)
        return Outcome(classes, nothing, nothing, nothing.long(), [], nothing.bool())
    found, in_units = (torch.cat(parts) for parts in zip(*scores, strict=True))
    return Outcome(classes, found, torch.cat(values), torch.cat(labels), paths, in_units)


def reference(backbone: FrozenClip, classes: ClassSet) -> Any:
    """Zero-shot CLIP: antonym prompts made from the instruction."""
    from ..methods.prompt_pair import Config, PromptPair

    return PromptPair(Config()).setup(backbone, classes)


def class_rows(spaces: Any, zero_shot: Any) -> list[dict[str, Any]]:
    """Rows of per_class.csv."""
    rows = []
    for space, outcome in spaces.outcomes.items():
        before = {name: one for name, _, one in zero_shot.outcomes[space].per_class()}
        for name, images, one in outcome.per_class():
            numbers = {key: (one or {}).get(key) for key in ("spearman", "pearson", "kendall", "pairwise_accuracy", "mae")}
            row = {"space": space, "class": name, "text": outcome.classes.text(name), "images": images, **numbers}
            rows.append({**row, "zero_shot_spearman": (before[name] or {}).get("spearman")})
    return rows


def lines(values: Mapping[str, Any]) -> str:
    """The headline of one space as a line."""
    return (
        f"Spearman [bold]{number(values.get('spearman'))}[/bold], pairwise accuracy {number(values.get('pairwise_accuracy'))}, "
        f"Kendall {number(values.get('kendall'))}, {values['images']} images, {values['classes']} categories"
    )


def number(value: Any) -> str:
    """Three decimals, or a dash."""
    return f"{value:.3f}" if isinstance(value, int | float) else "–"


def write_report(run_dir: Path, metrics: Mapping[str, Any], thumbnail: Callable[[str], Any]) -> None:
    """Write report.html."""
    from ..ordering_report import write_report as write

    write(run_dir, metrics, thumbnail)


def show_results(session: Session, metrics: Mapping[str, Any], run_dir: Path) -> None:
    """Print the table of a finished run, where it is, and what to do next."""
    from ..ordering_show import results

    results(session, metrics, run_dir)
