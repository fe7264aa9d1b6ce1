"""Screens of the commands that only look things up: tables on a terminal, plain columns elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from . import listing


def say(text: str) -> None:
    """Print one text as it is: no markup, no colour, no wrapping."""
    print(text)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows: a Rich table on a terminal, aligned plain columns in a file or pipe."""
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for i, name in enumerate(columns):
            drawn.add_column(name, style="cyan" if i == 0 else "", no_wrap=i == 0)
        for row in rows:
            drawn.add_row(*(Text(cell) for cell in row))
        Console().print(drawn)
        return
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(len(columns))]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def show_recipes() -> None:
    """`limpet recipes`."""
    rows = listing.recipes()
    table(("recipe", "what it is"), [row for row in rows if "/" not in row[0]])
    say("")
    table(("to build with", "what it is"), [row for row in rows if "/" in row[0]])
    say("")
    say("Run one:    limpet fit quickstart")
    say("Look at it: limpet recipes show fish method=tip_adapter")
    say("Make yours: limpet recipes copy fish my_fish.yaml")


def show_methods() -> None:
    """`limpet methods`."""
    rows = [(name, ", ".join(recipes), text) for name, text, recipes in listing.methods()]
    table(("method", "recipes", "what it does"), rows)
    say("")
    say("Use one: limpet fit quickstart method=tip_adapter")


def show_doctor() -> bool:
    """`limpet doctor`; returns whether all is well."""
    from . import doctor

    table(("package", "version"), doctor.versions())
    say("")
    table(("machine", ""), doctor.machine())
    say("")
    problems = doctor.problems()
    for problem in problems:
        say(f"! {problem}")
    if not problems:
        say("All is well.")
    return not problems
