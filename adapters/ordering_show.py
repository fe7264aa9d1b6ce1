"""What a run that orders images prints when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from .show import TITLES, console
from .tasks.ordering import number

if TYPE_CHECKING:
    from .session import Session

COLUMNS = {
    "spearman": "Spearman", "pairwise_accuracy": "pairs", "kendall": "Kendall", "mae": "MAE", "rounded_accuracy": "rounded",
}  # fmt: skip


def results(session: Session, metrics: Mapping[str, Any], run_dir: Path) -> None:
    """Print the table, the notes and the next command."""
    table = Table(title=escape(f"{metrics['recipe']}: {metrics['method']} on {metrics['backbone']}, test images"))
    table.add_column("order", no_wrap=True)
    for column in ("images", *COLUMNS.values()):
        table.add_column(column, justify="right")
    for space, values in metrics["results"].items():
        shown = [number(values.get(key)) for key in COLUMNS]
        table.add_row(escape(TITLES.get(space, space)), str(values["images"]), f"[bold]{shown[0]}[/bold]", *shown[1:])
        before = metrics["zero_shot"][space]
        table.add_row("  zero-shot prompts", "", *(number(before.get(key)) for key in COLUMNS), style="dim")
    console.print(table)
    for space, values in metrics["results"].items():
        bounds = values["confidence"]
        words = [f"{COLUMNS[key]} {low:.3f} to {high:.3f}" for key, (low, high) in bounds.items()]
        if words:
            where = f"{TITLES.get(space, space)}: " if len(metrics["results"]) > 1 else ""
            console.print(f"95 % interval, {where}{', '.join(words)}", markup=False)
    several = max(values["classes"] for values in metrics["results"].values())
    if several > 1:
        console.print(f"means over {several} categories; each in per_class.csv")
    for note in metrics["notes"]:
        if note not in session.notes:
            console.print(f"[yellow]note[/yellow] {escape(note)}")
    console.print(f"run folder: [bold]{escape(str(run_dir))}[/bold]")
    console.print(f"next: limpet predict {escape(str(run_dir))} FOLDER_OF_IMAGES", soft_wrap=True)
