"""`limpet predict`: files, folders, patterns or zip archives -> a table on the screen and a CSV, Parquet or JSON lines file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import LimpetError
from .files import printable
from .image_sources import SUFFIXES, Located, find_images, find_sources
from .prediction_files import check_target, writing
from .runs import is_run, resolve_run

if TYPE_CHECKING:
    from rich.console import Console

    from .calibration import Cut
    from .inference import Classifier, Prediction

__all__ = ["SUFFIXES", "find_images", "predict_command", "task_of_artefact"]
_SHOWN, _LISTED = 10, 50


def predict_command(
    run: Path | str,
    path: str | Sequence[str],
    out: Path | None = None,
    top: int | None = None,
    console: Console | None = None,
    *,
    instruction: str | None = None,
    labels: Path | None = None,
    coverage: float | None = None,
    max_error: float | None = None,
    threshold: float | None = None,
) -> int:
    """Predict the images at `path` with a run's adapter, write a table and print its first rows.

    Args:
        run: A run (path, `recipe/nnn` or `recipe`) or an artefact folder.
        path: A file, a folder, a zip archive or a pattern, or several of them.
        out: The file, its format by the suffix (.csv, .parquet, .jsonl); by default a new CSV in the run's folder.
        top: How many classes per image to write.
        console: Where to print.
        instruction: For an adapter that orders images: what to order by; by default what it was fitted with.
        labels: For an adapter that orders images: a CSV with path and value, to show the worst mistakes first.
        coverage: Mark the least sure answers as abstained, at the threshold that answered this share of the
            validation images.
        max_error: The same, at the threshold where at most this share of the answers was wrong there.
        threshold: The same, at a confidence in [0, 1] of your own.

    Returns:
        0, or 1 where some images could not be read (they are listed, and in the file with an empty label).

    Raises:
        LimpetError: If the run or the images do not exist, or the file cannot be written.
    """
    from rich.console import Console

    console = console or Console()
    if top is not None and top < 1:
        raise LimpetError(f"top is {top}; it must be at least 1.")
    asked = {"--coverage": coverage, "--max-error": max_error, "--threshold": threshold}
    given = [name for name, value in asked.items() if value is not None]
    if len(given) > 1:
        raise LimpetError(f"{' and '.join(given)} each choose a threshold; give one of them.")
    folder = Path(run)
    if not (is_run(folder) or (folder / "adapter.json").is_file() or (folder / "adapter").is_dir()):
        folder = resolve_run(str(run))
    if out is not None:
        check_target(out)
    from .predict_regions import command

    answered = command(folder, path, out, top or 1, console, _fresh)
    if answered is not None:
        return answered
    images = find_sources(path)
    if task_of_artefact(folder) == "ordering":
        from .predict_order import order_command

        if given or top not in (None, 1):
            raise LimpetError(f"{(given or ['--top'])[0]} is for adapters that classify; this one orders images.")
        return order_command(folder, images, out or _fresh(folder, "ordered"), instruction, labels, console)
    if instruction is not None or labels is not None:
        raise LimpetError("--instruction and --labels are for adapters that order images; this one classifies.")
    return _classify(folder, images, out, top or 1, console, coverage, max_error, threshold)


def _classify(
    folder: Path, images: Sequence[Located], out: Path | None, top: int, console: Console,
    coverage: float | None, max_error: float | None, threshold: float | None,
) -> int:  # fmt: skip
    from .inference import Classifier

    classifier = Classifier.load(folder)
    cut = _cut(classifier, coverage, max_error)
    least = cut.threshold if cut is not None else threshold or 0.0
    if not 0 <= least <= 1:
        raise LimpetError(f"--threshold is {least:g}; a probability lies between 0 and 1.")
    count = len(classifier.classes)
    if top > count:
        _say(console, f"--top {top}: there are only {count} classes; all are written.")
    target = out if out is not None else _fresh(folder)
    started = time.perf_counter()
    found = _Found()
    try:
        _write(classifier, images, target, min(top, count), least, found)
    except OSError as error:
        raise LimpetError(f"The predictions cannot be written to {target}: {error.strerror or error}.") from None
    seconds = time.perf_counter() - started
    _show(console, found.first, [str(image) for image in images])
    rate = len(images) / max(seconds, 1e-9)
    _say(console, f"{len(images)} images in {seconds:.1f} s ({rate:.0f} a second)")
    for line in _sentences(classifier, cut, least, found, len(images)):
        _say(console, line)
    _say(console, f"Predictions: {target}")
    return 1 if found.broken else 0


def task_of_artefact(folder: Path) -> str:
    """The task of a run's newest adapter (the method's file is imported for it)."""
    from . import adapter, artifact

    return adapter.find(artifact.load_info(folder)["method"]["name"]).task


class _Found:
    """What is remembered of all predictions: the first ones, and the names of the odd ones."""

    def __init__(self) -> None:
        self.first: list[Prediction] = []
        self.broken: list[tuple[str, str]] = []
        self.noted: list[tuple[str, str]] = []
        self.abstained = 0


def _cut(classifier: Classifier, coverage: float | None, max_error: float | None) -> Cut | None:
    if coverage is None and max_error is None:
        return None
    if classifier.calibration is None:
        raise LimpetError(
            "This adapter has no thresholds: they are chosen on validation images when a run is fitted, and it had none, or "
            "was written by an older Limpet. Give --threshold, a probability between 0 and 1, instead."
        )
    return classifier.calibration.cut(coverage, max_error)


def _write(
    classifier: Classifier, images: Sequence[Located], target: Path, top: int, threshold: float, found: _Found
) -> None:
    """Stream predictions into `target`, which appears only when complete."""
    from .progress import Progress

    columns: dict[str, type] = {
        "path": str, "label": str, "text": str, "probability": float, "calibrated": float, "abstained": bool
    }  # fmt: skip
    for rank in range(2, top + 1):
        columns |= {f"top{rank}": str, f"probability{rank}": float, f"calibrated{rank}": float}
    if classifier.explains:
        columns["because"] = str
    columns["error"] = str
    with writing(target, columns) as writer, Progress("Predicting", len(images)) as progress:
        for one in classifier.predict(images, top=top, threshold=threshold):
            progress.advance(1)
            writer.write(_row(classifier, one))
            if one.error is not None:
                found.broken.append((printable(one.path), one.error))
            if one.note is not None:
                found.noted.append((printable(one.path), one.note))
            found.abstained += one.abstained
            if len(found.first) < _SHOWN:
                found.first.append(one)


def _row(classifier: Classifier, one: Prediction) -> dict[str, Any]:
    row: dict[str, Any] = {"path": printable(one.path)}
    if one.error is not None:
        return {**row, "error": one.error}
    label = str(one.label)
    row |= {
        "label": label, "text": classifier.text(label), "probability": one.probability, "calibrated": one.calibrated,
        "abstained": one.abstained,
    }  # fmt: skip
    for rank, (name, probability) in enumerate(one.top[1:], start=2):
        row |= {f"top{rank}": name, f"probability{rank}": probability}
        if one.calibrated_top:
            row[f"calibrated{rank}"] = one.calibrated_top[rank - 1]
    if classifier.explains:
        row["because"] = "; ".join(f"{words} ({number:.3f})" for words, number in one.because)
    return row


def _sentences(classifier: Classifier, cut: Cut | None, threshold: float, found: _Found, count: int) -> list[str]:
    """What is to be said beside the table."""
    lines = []
    known = classifier.calibration
    if known is not None and known.classes != len(classifier.classes):
        lines.append(
            f"The calibrated probabilities were fitted for {known.classes} classes; there are {len(classifier.classes)} now, "
            "so trust them less."
        )
    answered = count - len(found.broken)
    if threshold > 0 or cut is not None:
        text = f"Abstained from {found.abstained} of {answered} images (less sure than {100 * threshold:.1f} %)"
        if cut is not None and known is not None:
            text += (
                f"; on the {known.images} validation images that threshold answered {100 * cut.coverage:.0f} %, "
                f"{100 * cut.error:.1f} % of them wrongly"
            )
        lines.append(f"{text}. They are marked in the column abstained.")
    if found.noted:
        lines.append(f"Images with several frames or pages, of which only the first was looked at: {len(found.noted)}")
        lines += _listed([f"  {name}" for name, _ in found.noted])
    if found.broken:
        lines.append(f"{len(found.broken)} of {count} images could not be read:")
        lines += _listed([f"  {name}: {why}" for name, why in found.broken])
    return lines


def _listed(lines: list[str]) -> list[str]:
    more = [f"  and {len(lines) - _LISTED} more, all in the file"] if len(lines) > _LISTED else []
    return lines[:_LISTED] + more


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _show(console: Console, first: list[Prediction], images: Sequence[str]) -> None:
    """Print the first predictions, their paths below the folder they have in common."""
    from rich.table import Table
    from rich.text import Text

    from .predict_order import common_folder

    title = "Predictions" if len(images) <= len(first) else f"Predictions (the first {len(first)} of {len(images)})"
    table = Table(title=title)
    calibrated = any(one.calibrated is not None for one in first)
    table.add_column("image", overflow="fold")
    table.add_column("label", overflow="fold")
    table.add_column("probability", justify="right")
    if calibrated:
        table.add_column("calibrated", justify="right")
    explained = any(one.because for one in first)
    if explained:
        table.add_column("because", overflow="fold")
    common = common_folder(images)
    for one in first:
        path = Path(one.path)
        name = Text(printable(str(path.relative_to(common) if path.is_relative_to(common) else path)))
        if one.error is not None:
            table.add_row(name, Text("not readable", style="red"))
            continue
        label = Text(f"{one.label} (abstained)", style="dim") if one.abstained else Text(str(one.label))
        cells: list[Text | str] = [name, label, f"{one.probability:.3f}"]
        cells += [f"{one.calibrated:.3f}" if one.calibrated is not None else ""] if calibrated else []
        cells += [Text("\n".join(f"{number:.2f} {words}" for words, number in one.because[:2]))] if explained else []
        table.add_row(*cells)
    console.print(table)


def _fresh(folder: Path, stem: str = "predicted") -> Path:
    """A file name in the run's folder that does not exist yet; `predictions.csv` is the test images' own."""
    place = folder
    if (folder / "adapter.json").is_file():  # an artefact is write-once: beside it, not in it
        place = folder.parent
    number = 1
    while (place / f"{stem}-{number}.csv").exists():
        number += 1
    return place / f"{stem}-{number}.csv"
