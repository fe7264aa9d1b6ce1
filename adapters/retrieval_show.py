"""Rows of retrieval results, for the screen and for retrieval.csv."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

NAMES = {"image_to_image": "images by image", "image_to_text": "texts by image", "text_to_image": "images by text"}


def rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a direction, pooling and form: figures in [0, 1]; images by image also with those of grouping."""
    found = []
    for pooling, forms in result.get("image_to_image", {}).items():
        for form, metrics in forms.items():
            grouping = result["groups"][pooling][form]
            found.append({"what": "image_to_image", "pooling": pooling, "form": form, **metrics, **grouping})
    for what in ("image_to_text", "text_to_image"):
        if what in result:
            found.append({"what": what, "pooling": "", "form": "", **result[what]})
    return found


def columns(result: Mapping[str, Any]) -> list[str]:
    """Columns of retrieval.csv."""
    return list(dict.fromkeys(key for row in rows(result) for key in row))


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print the table."""
    from .show import percent

    table = Table(title="Retrieval on the test images, %", box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("found", no_wrap=True)
    table.add_column("pooling", no_wrap=True)
    figures = [c for c in columns(result) if c in ("map", "ndcg") or c.startswith("r@")]
    grouping = [c for c in ("ari", "nmi") if c in columns(result)]
    titles = {"map": "mAP", "ndcg": "nDCG", "ari": "ARI", "nmi": "NMI"}
    for column in (*figures, *grouping):
        table.add_column(titles.get(column, column.upper()), justify="right", no_wrap=True)
    before = None
    for row in rows(result):
        what = NAMES[row["what"]] if row["what"] != before else ""
        before = row["what"]
        kind = f"{row['pooling']}, whitened" if row["form"] == "whitened" else row["pooling"]
        table.add_row(what, kind, *(percent(row.get(c)) if c in row else "" for c in (*figures, *grouping)))
    console.print(table)
    for row in rows(result)[:1]:
        unit = "captions" if result["by"] == "pairs" else "classes"
        other = "the training images" if result["gallery"] == "train" else "the other test images"
        if row["what"] == "image_to_image":
            console.print(f"{row['queries']} queries among {other}; relevant is what is of the same class. "
                          "ARI and NMI: k-means groups against classes.")  # fmt: skip
        else:
            console.print(f"{row['queries']} images with {unit}")
        if row["unmatched"]:
            console.print(f"{row['unmatched']} queries have nothing relevant to find and are left out")
    for note in result["notes"]:
        console.print(f"[yellow]note[/yellow] {escape(note)}")
