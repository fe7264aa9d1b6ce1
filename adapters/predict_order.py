"""`limpet predict` with an adapter that orders images: CSV, table, contact sheet (PNG and HTML)."""

from __future__ import annotations

import html
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import contact_sheet, files
from .contact_sheet import Picture
from .csv_files import cell, read_rows
from .errors import LimpetError
from .files import printable
from .image_sources import Located, open_image
from .ordering_metrics import displacement, order_metrics

if TYPE_CHECKING:
    from rich.console import Console

    from .ranker import Ranked

_ENDS, _FAR = 5, 0.25


def order_command(
    folder: Path,
    sources: Sequence[Located],
    out: Path,
    instruction: str | None = None,
    labels: Path | None = None,
    console: Console | None = None,
) -> int:
    """Order images with a run's adapter; write `out` (CSV) and a contact sheet of the same name, and print both ends.

    Args:
        folder: a run's or an artefact's folder.
        sources: paths, or members of archives.
        out: the CSV file; .png and .html stand beside it.
        instruction: what to order by; default: the one the adapter was fitted with.
        labels: a CSV with the columns path and value; default: a labels.csv in the folder that holds the images.
        console: where to print.

    Returns:
        0, or 1 where some images could not be read.
    """
    from rich.console import Console

    from .progress import Progress
    from .ranker import Ranker

    console = console or Console()
    if out.suffix.lower() != ".csv":
        raise LimpetError(f"An order is written as CSV, with a contact sheet beside it; {out} should end in .csv.")
    images = [str(source) for source in sources]
    ranker = Ranker.load(folder)
    chosen = ranker.choose(instruction)
    asked = [chosen]
    if chosen not in ranker.instructions and ranker.adapter.follows_instructions:
        asked.append(ranker.nearest(chosen)[0])
    common = common_folder(images)
    values = known_values(images, labels, common)
    started = time.perf_counter()
    with Progress("Ordering", len(images)) as progress:
        orders = ranker.rank_with(asked, sources, progress=progress)
    seconds = time.perf_counter() - started
    found = [one for one in orders[0] if one.error is None]
    broken = [one for one in orders[0] if one.error is not None]
    if not found:
        raise LimpetError(f"None of the {len(images)} images could be read; the first: {broken[0].path}: {broken[0].error}.")
    note = ranker.note(chosen, _agreement(found, orders[1]) if len(orders) > 1 else None)
    away = _displacements(found, values)
    try:
        _write(found, broken, values, away, out)
        sheet(found, values, away, chosen, out, note, sources)
    except OSError as error:
        raise LimpetError(f"The order cannot be written to {out}: {error.strerror or error}.") from None
    _show(console, found, values, common, chosen)
    if note:
        console.print(note, style="yellow", highlight=False, markup=False)
    if away:
        _measured(console, found, values, away)
    speed = len(images) / max(seconds, 1e-9)
    console.print(f"{len(images)} images in {seconds:.1f} s ({speed:.0f} a second)", highlight=False)
    for what, suffix in (("Order", ".csv"), ("Contact sheet", ".png"), ("Page", ".html")):
        console.print(f"{what}: {out.with_suffix(suffix)}", highlight=False, markup=False, soft_wrap=True)
    if broken:
        console.print(f"{len(broken)} of {len(images)} images could not be read:", highlight=False)
        for one in broken[:50]:
            console.print(f"  {one.path}: {one.error}", highlight=False, markup=False, soft_wrap=True)
    return 1 if broken else 0


def common_folder(images: Sequence[str]) -> Path:
    """The folder that all images lie below; the working folder where there is none."""
    try:
        return Path(os.path.commonpath(images)) if len(images) > 1 else Path(images[0]).parent
    except ValueError:  # absolute and relative paths, or several drives
        return Path()


def known_values(images: Sequence[str], labels: Path | None, common: Path) -> dict[str, float]:
    """The true value of each image that a table of labels names.

    Raises:
        LimpetError: a table that was named does not exist, or lacks a column.
    """
    table = labels
    if table is None:
        table = next((f / "labels.csv" for f in (common, common.parent) if (f / "labels.csv").is_file()), None)
        if table is None:
            return {}
    elif not table.is_file():
        raise LimpetError(f"There is no table of labels {table}.")
    rows = read_rows(table, ("path", "value") if labels is not None else ())
    true: dict[str, float] = {}
    for row in rows:
        try:
            true[os.path.realpath(table.parent / row["path"])] = float(row["value"])
        except (KeyError, ValueError):
            continue  # a row without a number has nothing to be compared with
    return {path: true[real] for path in images if (real := os.path.realpath(path)) in true}


def sheet(
    found: Sequence[Ranked],
    values: Mapping[str, float],
    away: Mapping[str, float],
    instruction: str,
    out: Path,
    note: str | None = None,
    sources: Sequence[Located] = (),
) -> None:
    """Write the contact sheet beside `out`: .png in order, .html in order and, where values are known, mistakes first."""
    where = {str(source): source for source in sources}

    def find(path: str) -> Any:
        return open_image(where.get(path, path))

    pictures = [_picture(one, values, away) for one in found]
    sections = []
    if away:
        worst = sorted((p for p in pictures if p.path in away), key=lambda p: -abs(away[p.path]))[:24]
        sections.append(("Worst mistakes", "Furthest from their place by value first; the place is a share of the order.", worst))
    sections.append(("In order", "Greatest score first.", pictures))
    head = f"<p class=note>{html.escape(note)}</p>" if note else ""
    contact_sheet.png(pictures, find, out.with_suffix(".png"), f"{instruction}  ({len(pictures)} images, greatest first)")
    text = contact_sheet.page(instruction, sections, find, head)
    files.write_bytes(out.with_suffix(".html"), text.encode("utf-8", "replace"))


def _picture(one: Ranked, values: Mapping[str, float], away: Mapping[str, float]) -> Picture:
    title = f"{one.score:.3g}"
    if one.path not in values:
        return Picture(one.rank, one.path, title)
    return Picture(one.rank, one.path, title, f"value {values[one.path]:g}", abs(away.get(one.path, 0.0)) > _FAR)


def _displacements(found: Sequence[Ranked], values: Mapping[str, float]) -> dict[str, float]:
    import numpy as np

    known = [one for one in found if one.path in values]
    if len({values[one.path] for one in known}) < 2:
        return {}
    away = displacement(np.array([one.score for one in known]), np.array([values[one.path] for one in known]))
    return {one.path: float(d) for one, d in zip(known, away, strict=True)}


def _agreement(one: Sequence[Ranked], other: Sequence[Ranked]) -> float | None:
    """Spearman correlation of two orders of the same images."""
    import numpy as np

    second = {item.path: item.score for item in other}
    found = order_metrics(np.array([i.score for i in one]), np.array([second[i.path] for i in one]))
    return None if found is None else found["spearman"]


def _write(
    found: Sequence[Ranked], broken: Sequence[Ranked], values: Mapping[str, float], away: Mapping[str, float], out: Path
) -> None:
    columns = ["rank", "path", "score"]
    columns += ["value", "displacement"] if away else []
    rows = []
    for one in found:
        row: dict[str, Any] = {"rank": one.rank, "path": cell(printable(one.path)), "score": f"{one.score:.6f}"}
        if away:
            row["value"] = values.get(one.path, "")
            row["displacement"] = f"{away[one.path]:.6f}" if one.path in away else ""
        rows.append(row)
    rows += [{"path": cell(printable(one.path))} for one in broken]
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_csv(out, rows, columns)


def _show(console: Console, found: Sequence[Ranked], values: Mapping[str, float], common: Path, instruction: str) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(instruction))
    table.add_column("rank", justify="right")
    table.add_column("image", overflow="fold")
    table.add_column("score", justify="right")
    valued = bool(values)
    if valued:
        table.add_column("value", justify="right")
    gap = len(found) > 2 * _ENDS
    for one in [*found[:_ENDS], *found[-_ENDS:]] if gap else found:
        if gap and one is found[-_ENDS]:
            table.add_row("...", "")
        path = Path(one.path)
        name = path.relative_to(common) if path.is_relative_to(common) else path
        cells: list[Any] = [str(one.rank), Text(printable(str(name))), f"{one.score:.3f}"]
        cells += [f"{values[one.path]:g}" if one.path in values else ""] if valued else []
        table.add_row(*cells)
    console.print(table)


def _measured(console: Console, found: Sequence[Ranked], values: Mapping[str, float], away: Mapping[str, float]) -> None:
    import numpy as np

    known = [one for one in found if one.path in away]
    result = order_metrics(np.array([o.score for o in known]), np.array([values[o.path] for o in known]))
    if result is not None:
        console.print(
            f"Against the values of {len(known)} images: Spearman {result['spearman']:.3f}, "
            f"pairwise accuracy {result['pairwise_accuracy']:.3f}. Worst mistakes come first on the page.",
            highlight=False,
        )
