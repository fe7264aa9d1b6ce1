"""`limpet predict`: a file, a folder or a glob -> a CSV file and a table."""

from __future__ import annotations

import csv
import glob
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .csv_files import cell
from .errors import LimpetError
from .runs import is_run, resolve_run

if TYPE_CHECKING:
    from rich.console import Console

    from .inference import Classifier

SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2", ".jfif"]
)
_SHOWN = 10


def find_images(path: str) -> list[str]:
    """Return the images at `path`: a file, every image below a folder (links to folders once), or a glob's files.

    Raises:
        LimpetError: If there is none.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return [str(place)]
    if place.is_dir():
        found = list(_below(place))
        if not found:
            raise LimpetError(
                f"No images found in {place}: looked below it for {', '.join(sorted(SUFFIXES))}."
            )
        return found
    matches = sorted(glob.glob(str(place), recursive=True))  # noqa: PTH207 - the pattern may be absolute
    found = [name for name in matches if Path(name).is_file()]
    found += [name for folder in matches if Path(folder).is_dir() for name in _below(Path(folder))]
    if not found:
        raise LimpetError(
            f"No images found: {path} is neither a file nor a folder, and as a pattern it matches none."
        )
    return list(dict.fromkeys(found))


def predict_command(
    run: Path | str,
    path: str,
    out: Path | None = None,
    top: int | None = None,
    console: Console | None = None,
    *,
    instruction: str | None = None,
    labels: Path | None = None,
) -> int:
    """Predict the images at `path` with a run's adapter, write a CSV file and print its first rows.

    Args:
        run: A run (path, `recipe/nnn` or `recipe`) or an artefact folder.
        path: A file, a folder or a glob.
        out: The CSV file; by default a new one in the run's folder.
        top: How many classes per image to write.
        console: Where to print.
        instruction: For an adapter that orders images: what to order by; by default what it was fitted with.
        labels: For an adapter that orders images: a CSV with path and value, to show the worst mistakes first.

    Returns:
        0, or 1 where some images could not be read (they are listed, and in the CSV with an empty label).

    Raises:
        LimpetError: If the run or the images do not exist, or the file cannot be written.
    """
    from rich.console import Console

    from .inference import Classifier

    console = console or Console()
    top = 1 if top is None else top
    if top < 1:
        raise LimpetError(f"top is {top}; it must be at least 1.")
    folder = Path(run)
    if not (is_run(folder) or (folder / "adapter.json").is_file() or (folder / "adapter").is_dir()):
        folder = resolve_run(str(run))
    from .predict_regions import command

    answered = command(folder, path, out, top or 1, console, _fresh)
    if answered is not None:
        return answered
    images = find_images(path)
    if task_of_artefact(folder) == "ordering":
        from .predict_order import order_command

        if top != 1:
            raise LimpetError("--top is for adapters that classify; this one orders images.")
        return order_command(folder, images, out or _fresh(folder, "ordered"), instruction, labels, console)
    if instruction is not None or labels is not None:
        raise LimpetError("--instruction and --labels are for adapters that order images; this one classifies.")
    classifier = Classifier.load(folder)
    top = min(top, len(classifier.classes))
    target = out if out is not None else _fresh(folder)
    started = time.perf_counter()
    try:
        first, broken = _write(classifier, images, target, top)
    except OSError as error:
        raise LimpetError(
            f"The predictions cannot be written to {target}: {error.strerror or error}."
        ) from None
    seconds = time.perf_counter() - started
    _show(console, first, len(images), Path(os.path.commonpath(images)))
    console.print(f"{len(images)} images in {seconds:.1f} s ({len(images) / max(seconds, 1e-9):.0f} a second)",
                  highlight=False)  # fmt: skip
    console.print(f"Predictions: {target}", highlight=False, markup=False, soft_wrap=True)
    if broken:
        console.print(f"{len(broken)} of {len(images)} images could not be read:", highlight=False)
        for name, why in broken[:50]:
            console.print(f"  {name}: {why}", highlight=False, markup=False, soft_wrap=True)
        if len(broken) > 50:
            console.print(f"  and {len(broken) - 50} more, with an empty label in the file", highlight=False)
    return 1 if broken else 0


def task_of_artefact(folder: Path) -> str:
    """The task of a run's newest adapter (the method's file is imported for it)."""
    from . import adapter, artifact

    return adapter.find(artifact.load_info(folder)["method"]["name"]).task


def _write(
    classifier: Classifier, images: list[str], target: Path, top: int
) -> tuple[list[Any], list[tuple[str, str]]]:
    """Stream predictions into `target`, which appears only when complete. Returns the first ones and the broken."""
    from .progress import Progress

    header = ["path", "label", "text", "probability"]
    for rank in range(2, top + 1):
        header += [f"top{rank}", f"probability{rank}"]
    first: list[Any] = []
    broken: list[tuple[str, str]] = []
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
    try:
        with (
            beside.open("w", newline="", encoding="utf-8") as file,
            Progress("Predicting", len(images)) as progress,
        ):
            writer = csv.writer(file)
            writer.writerow(header)
            for prediction in classifier.predict(images, top=top):
                progress.advance(1)
                path = _printable(prediction.path)
                if prediction.error is not None:
                    broken.append((path, prediction.error))
                    writer.writerow([cell(path)] + [""] * (len(header) - 1))
                else:
                    label = str(prediction.label)
                    row = [
                        cell(path),
                        cell(label),
                        cell(classifier.text(label)),
                        f"{prediction.probability:.6f}",
                    ]
                    for name, probability in prediction.top[1:]:
                        row += [cell(name), f"{probability:.6f}"]
                    writer.writerow(row)
                if len(first) < _SHOWN:
                    first.append(prediction)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    return first, broken


def _show(console: Console, first: list[Any], count: int, common: Path) -> None:
    """Print the first predictions, their paths below the folder they have in common."""
    from rich.table import Table
    from rich.text import Text

    title = "Predictions" if count <= len(first) else f"Predictions (the first {len(first)} of {count})"
    table = Table(title=title)
    for column, justify in (("image", "left"), ("label", "left"), ("probability", "right")):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for prediction in first:
        if prediction.error is None:
            texts = Text(str(prediction.label)), Text(f"{prediction.probability:.3f}")
        else:
            texts = Text("not readable", style="red"), Text("")
        path = Path(prediction.path)
        short = path.name if path == common else path.relative_to(common)
        table.add_row(Text(_printable(str(short))), *texts)
    console.print(table)


def _below(folder: Path) -> Iterator[str]:
    """Images below a folder in order of name; links are followed, each real folder once."""
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(files):
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("._"):
                yield str(Path(parent, name))


def _fresh(folder: Path, stem: str = "predicted") -> Path:
    """A file name in the run's folder that does not exist yet; `predictions.csv` is the test images' own."""
    place = folder
    if (folder / "adapter.json").is_file():  # an artefact is write-once: beside it, not in it
        place = folder.parent
    number = 1
    while (place / f"{stem}-{number}.csv").exists():
        number += 1
    return place / f"{stem}-{number}.csv"


def _printable(path: str) -> str:
    """A path whose bytes are no valid text (possible on Linux) as text that can be written."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
