"""What is measured besides a method's own results: its controls, wordings of the classes, retrieval."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import files, retrieval_show, wordings
from .callbacks.base_to_new import label_spaces
from .callbacks.controls import measure_controls
from .retrieval import retrieve

if TYPE_CHECKING:
    from rich.console import Console

    from .adapter import Adapter
    from .classes import ClassSet
    from .recipe import Recipe


def measure_more(adapter: Adapter, data: Any, images: Any, classes: ClassSet, recipe: Recipe) -> dict[str, Any]:
    """Measure what the recipe asks for besides the adapter's own results.

    Args:
        adapter: an adapter after training.
        data: a data module with what the adapter reads, over all classes.
        images: the same with images, labels counting in `classes`.
        classes: all classes.
        recipe: its `evaluate` section says what.

    Returns:
        Any of "controls", "wordings" and "retrieval", for metrics.json.
    """
    spaces = label_spaces(classes, recipe.protocol)
    found: dict[str, Any] = {"controls": measure_controls(adapter, data, spaces)}
    if recipe.evaluate.wordings:
        found["wordings"] = wordings.compare(adapter, data, spaces, recipe.evaluate.wordings)
    if recipe.evaluate.task == "retrieval":
        found["retrieval"] = retrieve(adapter, images, classes, recipe.evaluate.retrieval, recipe.seed)
    return {key: value for key, value in found.items() if value}


def write(metrics: Mapping[str, Any], folder: Path) -> None:
    """Write wordings.csv and retrieval.csv where there is something to put in."""
    if "wordings" in metrics:
        files.write_csv(folder / "wordings.csv", wordings.rows(metrics["wordings"]))
    if "retrieval" in metrics:
        result = metrics["retrieval"]
        files.write_csv(folder / "retrieval.csv", retrieval_show.rows(result), retrieval_show.columns(result))


def show(metrics: Mapping[str, Any], console: Console) -> None:
    """Print tables of wordings and retrieval."""
    if "wordings" in metrics:
        wordings.show(metrics["wordings"], console)
    if "retrieval" in metrics:
        retrieval_show.show(metrics["retrieval"], console)
