"""`report.html` of a run that orders images: figures, the test images in the order found, and the worst mistakes."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import contact_sheet, csv_files, files
from .contact_sheet import Picture

COLUMNS = {
    "spearman": "Spearman", "pairwise_accuracy": "Pairs in the right order", "kendall": "Kendall tau-b",
    "pearson": "Pearson", "mae": "Mean absolute error", "rounded_accuracy": "Right after rounding",
}  # fmt: skip
_EACH, _MISTAKES, _CATEGORIES, _FAR = 60, 24, 8, 0.25


def write_report(run_dir: Path, metrics: Mapping[str, Any], thumbnail: Callable[[str], Any]) -> Path:
    """Write `report.html` into a run's folder and return its path."""
    rows = csv_files.read_rows(run_dir / "predictions.csv", ("category", "rank", "path", "score", "value"))
    space = next((s for s in ("all", "joint", "base") if any(row["space"] == s for row in rows)), "all")
    rows = [row for row in rows if row["space"] == space]
    head = _table(metrics) + "".join(f"<p class=note>{html.escape(note)}</p>" for note in metrics["notes"])
    title = f"{metrics['recipe']}: {metrics['method']} on {metrics['backbone']}"
    text = contact_sheet.page(title, sections(rows), thumbnail, head)
    files.write_bytes(run_dir / "report.html", text.encode("utf-8", "replace"))
    return run_dir / "report.html"


def sections(rows: Sequence[Mapping[str, str]]) -> list[tuple[str, str, list[Picture]]]:
    """The worst mistakes first, then the order found in each category."""
    worst = sorted(rows, key=lambda row: -abs(float(row["displacement"])))[:_MISTAKES]
    found = [
        (
            "Worst mistakes",
            "Furthest from their place first; the place is a share of the order, 0 the least and 1 the most.",
            [picture(row) for row in worst],
        )
    ]
    names = list(dict.fromkeys(row["category"] for row in rows))
    for name in names[:_CATEGORIES]:
        pictures = [picture(row) for row in rows if row["category"] == name]
        words = "In the order found" if len(names) == 1 else f"{name}, in the order found"
        found.append((words, "Greatest score first; red where the place is far off.", contact_sheet.some(pictures, _EACH)))
    return found


def picture(row: Mapping[str, str]) -> Picture:
    """How an image of known value is shown."""
    away = float(row["displacement"])
    below = f"score {float(row['score']):.3g}, place {away:+.2f}"
    return Picture(int(row["rank"]), row["path"], f"value {float(row['value']):g}", below, abs(away) > _FAR)


def _table(metrics: Mapping[str, Any]) -> str:
    cells = "".join(f"<th>{name}</th>" for name in ("", *COLUMNS.values()))
    lines = [f"<tr>{cells}</tr>"]
    for space, values in metrics["results"].items():
        for who, numbers in ((metrics["method"], values), ("zero-shot prompts", metrics["zero_shot"][space])):
            shown = []
            for key in COLUMNS:
                bounds = numbers.get("confidence", {}).get(key)
                between = f" ({bounds[0]:.2f}–{bounds[1]:.2f})" if bounds else ""
                shown.append(f"<td>{numbers[key]:.3f}{between}</td>" if key in numbers else "<td></td>")
            label = f"{who}, {space}" if len(metrics["results"]) > 1 else str(who)
            lines.append(f"<tr><td>{html.escape(label)}</td>{''.join(shown)}</tr>")
    images = next(iter(metrics["results"].values()))["images"]
    sentence = f"{images} test images; in brackets the 95 % interval of a bootstrap over images."
    return f"<table>{''.join(lines)}</table><p class=note>{html.escape(sentence)}</p>"
