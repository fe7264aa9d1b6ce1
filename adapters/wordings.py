"""Wordings compared: the same images asked about in other words, with bootstrap intervals of accuracy and of differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .classes import ClassSet
from .descriptors import key_of, read
from .errors import RecipeError, nearest
from .tasks import task_of

if TYPE_CHECKING:
    from rich.console import Console

    from .adapter import Adapter
    from .sections import WordingConfig

RESAMPLES = 2000
Array = NDArray[np.float64]


def worded(classes: ClassSet, wording: WordingConfig) -> ClassSet:
    """The same classes in other words: texts of the wording's file and table, in its templates; what it leaves out stays."""
    table = _table(wording)
    texts = {}
    for name in classes.names:
        key = key_of(name, classes.texts[name], table)
        texts[name] = tuple(table[key]) if key is not None and table[key] else classes.texts[name]
    return replace(classes, texts=texts, templates=tuple(wording.templates) or classes.templates)


def _table(wording: WordingConfig) -> dict[str, list[str]]:
    return {**(read(wording.file) if wording.file else {}), **wording.texts}


def check(wordings: Mapping[str, WordingConfig], classes: ClassSet, task: str = "classification") -> list[str]:
    """Read every wording once, before anything is trained.

    Returns:
        Sentences about classes that a wording leaves out, and about names that are no class here.

    Raises:
        RecipeError: a wording cannot be read or words none of the classes, or the method does not classify.
    """
    if wordings and task != "classification":
        raise RecipeError("evaluate.wordings words classes, and this method orders images by an instruction; remove it.")
    notes = []
    for name, wording in wordings.items():
        where = f"evaluate.wordings.{name}"
        try:
            table = _table(wording)
        except RecipeError as error:
            raise RecipeError(f"{where}.file: {error}") from None
        if not table:
            continue
        keys = {c: key_of(c, classes.texts[c], table) for c in classes.names}
        missing = [c for c, key in keys.items() if key is None]
        unknown = [key for key in table if key not in keys.values()]
        if len(missing) == len(keys):
            raise RecipeError(
                f"{where} words none of the {len(keys)} classes: it has '{unknown[0]}', and there is '{missing[0]}'."
                f"{nearest(missing[0], unknown)}"
            )
        if missing:
            notes.append(f"{where} leaves {some(missing)} as they are.{nearest(missing[0], unknown)}")
        elif wording.texts and unknown:
            notes.append(f"{where} also words {some(unknown)}, no classes here.")
        worded(classes, wording)
    return notes


def some(names: Sequence[str]) -> str:
    """The first of some names."""
    return ", ".join(map(repr, names[:4])) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def compare(
    adapter: Adapter, data: Any, spaces: Mapping[str, ClassSet], wordings: Mapping[str, WordingConfig], seed: int = 0
) -> dict[str, Any]:
    """Ask about the test images in each wording.

    Args:
        adapter: an adapter that classifies, after training.
        data: a data module with `restrict(names)` and `test_dataloader()`.
        spaces: label space -> its classes.
        wordings: name -> wording; the first is the one the others are compared with.
        seed: of the resampling.

    Returns:
        label space -> wording -> metrics with "confidence": {"accuracy", "balanced_accuracy": [low, high]} and, but for the
        first, "difference" in accuracy and its interval: {"accuracy": d, "confidence": [low, high]}. Intervals are of 95 %,
        over images drawn with repetition; differences over the same draws.
    """
    found: dict[str, Any] = {}
    for space, classes in spaces.items():
        loaded = list(data.restrict(classes.names).test_dataloader())
        draws: dict[str, Array] = {}
        for name, wording in wordings.items():
            outcome = task_of(adapter).evaluate(adapter, loaded, worded(classes, wording))
            right = (outcome.answers.predicted == outcome.labels).numpy()
            accuracies, balanced = resampled(right, outcome.labels.numpy(), seed)
            values = {**outcome.metrics(), "confidence": {"accuracy": _interval(accuracies), "balanced_accuracy": _interval(balanced)}}
            if draws:
                first = next(iter(draws))
                values["difference"] = {
                    "accuracy": values["accuracy"] - found[space][first]["accuracy"],
                    "confidence": _interval(accuracies - draws[first]),
                }
            draws[name] = accuracies
            found.setdefault(space, {})[name] = values
    return found


def resampled(right: NDArray[np.bool_], labels: NDArray[np.int64], seed: int = 0) -> tuple[Array, Array]:
    """Accuracy and balanced accuracy of `RESAMPLES` draws of the images with repetition.

    The same draws for the same number of images and seed, so that differences of two wordings are paired.
    """
    rng = np.random.default_rng(seed)
    accuracy, balanced = np.empty(RESAMPLES), np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        chosen = rng.integers(0, len(right), len(right))
        counts = np.bincount(labels[chosen], minlength=labels.max() + 1)
        hits = np.bincount(labels[chosen], weights=right[chosen], minlength=labels.max() + 1)
        accuracy[i] = right[chosen].mean()
        balanced[i] = (hits[counts > 0] / counts[counts > 0]).mean()
    return accuracy, balanced


def _interval(draws: Array) -> list[float]:
    low, high = np.percentile(draws, [2.5, 97.5])
    return [float(low), float(high)]


def rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of wordings.csv."""
    found = []
    for space, wordings in result.items():
        for name, values in wordings.items():
            low, high = values["confidence"]["accuracy"]
            difference = values.get("difference") or {}
            below, above = difference.get("confidence", ("", ""))
            found.append(
                {
                    "space": space, "wording": name, "images": values["images"], "accuracy": values["accuracy"],
                    "low": low, "high": high, "balanced_accuracy": values["balanced_accuracy"], "macro_f1": values["macro_f1"],
                    "difference": difference.get("accuracy", ""), "difference_low": below, "difference_high": above,
                }
            )  # fmt: skip
    return found


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print the table: accuracies with their intervals, differences from the first wording."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from .show import TITLES, percent

    first = next(iter(next(iter(result.values()))))
    table = Table(title="Wordings, % of the test images (95 % intervals)", box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column, justify in (("classes", "left"), ("wording", "left"), ("accuracy", "right"), ("balanced", "right"),
                            (f"less '{escape(first)}'", "right")):  # fmt: skip
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for space, wordings in result.items():
        for i, (name, values) in enumerate(wordings.items()):
            low, high = values["confidence"]["accuracy"]
            apart = values.get("difference")
            words = f"{percent(values['accuracy'])} ({percent(low)} to {percent(high)})"
            less = f"{100 * apart['accuracy']:+.1f} ({' to '.join(f'{100 * v:+.1f}' for v in apart['confidence'])})" if apart else ""
            table.add_row(TITLES.get(space, space) if not i else "", escape(name), words, percent(values["balanced_accuracy"]), less)
    console.print(table)
    alike = all(v["accuracy"] == w[first]["accuracy"] for w in result.values() for v in w.values())
    if alike and any(len(w) > 1 for w in result.values()):
        console.print("[yellow]note[/yellow] every wording gives the same: this method does not read the texts of its classes")
