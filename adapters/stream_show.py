"""What a run over a stream prints: a head and a line for each session, and the table at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from .show import console, percent

if TYPE_CHECKING:
    from .streams import Plan

_FIGURES = {
    "last": "Last: all sessions after the last one",
    "average_incremental": "Avg: mean of that over sessions",
    "forgetting": "forgetting: best less last, mean of sessions",
    "backward_transfer": "backward transfer: last less first",
    "transfer": "transfer: sessions before they were trained",
}


def plan_line(plan: Plan, regulariser: str) -> str:
    """A stream in one line."""
    sizes = [len(session.classes) for session in plan.stream.sessions]
    shown = ", ".join(map(str, sizes[:12])) + (", ..." if len(sizes) > 12 else "")
    known = f" after {len(plan.known)} known ones" if plan.known is not None else ""
    count = "1 session" if len(sizes) == 1 else f"{len(sizes)} sessions"
    return f"{count} by {plan.stream.by}{known}, {shown} classes; against forgetting: {regulariser}"


def header(plan: Plan, number: int) -> None:
    """Say which session begins."""
    session = plan.stream.sessions[number]
    names = ", ".join(session.classes[:6]) + (f" and {len(session.classes) - 6} more" if len(session.classes) > 6 else "")
    images = len(session.data.samples["train"])
    title = f"session {number + 1} of {len(plan)}" + (f", {session.name}" if session.name != str(number + 1) else "")
    console.print(f"[bold]{escape(title)}[/bold]: {images} images of {escape(names)}", soft_wrap=True)


def line(accuracies: list[float | None], so_far: float | None, kept: Mapping[str, float | None]) -> None:
    """Say what is right after a session."""
    other = "".join(f", {name} {percent(value)}" for name, value in kept.items())
    row = " ".join(percent(value) for value in accuracies)
    console.print(f"  so far [bold]{percent(so_far)} %[/bold]{escape(other)}; by session: {row}", soft_wrap=True)


def results(metrics: Mapping[str, Any], run_dir: Path) -> None:
    """Print the figures of a finished stream, where it is, and what to do next."""
    stream = metrics["continual"]
    title = f"{metrics['recipe']}: {metrics['method']} with {stream['regulariser']} on {metrics['backbone']}, %"
    table = Table(title=escape(title), box=SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("")
    table.add_column("this run", justify="right")
    table.add_column("zero-shot", justify="right")
    seen = [value for value in stream["zero_shot_seen"] if value is not None]
    zero = {"last": seen[-1], "average_incremental": sum(seen) / len(seen)} if seen else {}
    for key, words in _FIGURES.items():
        if stream[key] is not None:
            table.add_row(words, f"[bold]{percent(stream[key])}[/bold]", percent(zero.get(key)) if key in zero else "")
    for name, entry in stream["retention"].get("data", {}).items():
        table.add_row(f"kept on {escape(name)} (never trained on)", percent(entry["after"][-1]), percent(entry["zero_shot"]))
    console.print(table)
    for note in metrics["notes"]:
        console.print(f"[yellow]note[/yellow] {escape(note)}")
    console.print(f"run folder: [bold]{escape(str(run_dir))}[/bold]  (adapter/v1 ... v{len(stream['matrix'])}, one a session)")
    console.print(f"next: limpet predict {escape(str(run_dir))} FOLDER_OF_IMAGES", soft_wrap=True)
