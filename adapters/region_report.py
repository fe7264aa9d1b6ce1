"""`report.html` of runs about regions: boxes drawn on the images, or heat maps of what is anomalous."""

from __future__ import annotations

import html
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import contact_sheet, csv_files, files
from .contact_sheet import Picture

RIGHT, WRONG = (30, 170, 70), (214, 30, 50)
_WRONG, _ALL = 36, 60


def write_referring(
    run_dir: Path, metrics: Mapping[str, Any], ways: Sequence[tuple[str, Sequence[str]]], thumbnail: Callable[[str], Any]
) -> None:
    """Write the page of a choice among boxes: a table of ways, then images with the box that was chosen."""
    rows = csv_files.read_rows(run_dir / "predictions.csv", ("path", "caption", "chosen", "correct", "x0", "y0", "x1", "y1"))
    space = next((s for s in ("all", "joint", "base") if any(row["space"] == s for row in rows)), "all")
    rows = [row for row in rows if row["space"] == space]
    known = {row["path"]: row for row in rows}

    def find(path: str) -> Any:
        image = thumbnail(path)
        return image if image is None else with_box(image, known[path])

    pictures = [
        Picture(n, row["path"], row["caption"], f"probability {float(row['probability']):.2f}", float(row["correct"]) < 1)
        for n, row in enumerate(rows, start=1)
    ]
    wrong = [picture for picture in pictures if picture.mistake]
    sections = [
        ("Wrong boxes", "The box that was chosen, in red.", contact_sheet.some(wrong, _WRONG)),
        ("All captions", "The box that was chosen: green where it is right.", contact_sheet.some(pictures, _ALL)),
    ]
    head = table(["Right box, % of test captions", *metrics["results"]], ways) + notes(metrics)
    text = contact_sheet.page(title(metrics), sections, find, head)
    files.write_bytes(run_dir / "report.html", text.encode("utf-8", "replace"))


def with_box(image: Any, row: Mapping[str, str]) -> Any:
    """The image with the chosen box of a row of predictions.csv."""
    from PIL import ImageDraw

    image = image.convert("RGB")
    image.thumbnail((320, 320))
    sides = (image.width, image.height) * 2
    box = [float(row[key]) * side for key, side in zip(("x0", "y0", "x1", "y1"), sides, strict=True)]
    colour = RIGHT if float(row["correct"]) == 1 else WRONG
    ImageDraw.Draw(image).rectangle(box, outline=colour, width=max(2, image.width // 80))
    return image


def write_anomaly(run_dir: Path, metrics: Mapping[str, Any], rows: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Write the page of anomaly scores: a table, and heat maps from the most anomalous image to the least."""
    images = importlib.import_module(".datamodules.images", __package__)
    predictions = csv_files.read_rows(run_dir / "predictions.csv", ("path", "rank", "score", "anomalous", "heat_map"))
    with_map = [row for row in predictions if row["heat_map"]]
    files_of = {row["heat_map"]: run_dir / row["heat_map"] for row in with_map}

    def find(path: str) -> Any:
        return images.open_image(files_of[path]) if path in files_of else None

    pictures = [
        Picture(
            int(row["rank"]),
            row["heat_map"],
            f"{'anomalous' if row['anomalous'] == '1' else 'normal'}, {float(row['score']):.3f}",
            row["class"],
        )
        for row in with_map
    ]
    sentence = "Left the image, right the heat map; where a mask is known its outline is white. Highest score first."
    head = table(["AUROC on test images", "image", "pixel"], rows) + notes(metrics)
    style = "<style>figure{width:15rem}figure img{width:15rem;height:7.5rem}</style>"
    text = contact_sheet.page(title(metrics), [("Heat maps", sentence, pictures)], find, style + head)
    files.write_bytes(run_dir / "report.html", text.encode("utf-8", "replace"))


def title(metrics: Mapping[str, Any]) -> str:
    """Heading of a run's page."""
    return f"{metrics['recipe']}: {metrics['method']} on {metrics['backbone']}"


def notes(metrics: Mapping[str, Any]) -> str:
    """The notes of a run as HTML."""
    return "".join(f"<p class=note>{html.escape(note)}</p>" for note in metrics["notes"])


def table(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A table as HTML: its heading, then (name, cells)."""
    lines = ["<tr>" + "".join(f"<th>{html.escape(column)}</th>" for column in columns) + "</tr>"]
    for name, cells in rows:
        shown = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        lines.append(f"<tr><td>{html.escape(name)}</td>{shown}</tr>")
    return f"<table>{''.join(lines)}</table>"
