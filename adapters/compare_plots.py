"""The page and the shots curve of a comparison."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

    from .compare import Row
    from .paper_tables import PaperTable


HEADLINES = ("accuracy", "harmonic_mean", "base", "joint", "spearman", "image_auroc")
MOST = 40  # bars that can be read
Curves = dict[str, dict[int, tuple[float, float]]]
"""Line -> shots -> (mean, standard deviation), in percent; at 0 shots what needs no images."""


def shots_curve(rows: Sequence[Row]) -> bytes | None:
    """Return a PNG of the headline accuracy over shots, a line per method; None unless shots differ.

    Each recipe (and backbone, where they differ) has a panel of its own; a method looks the same in all of them, and the legend has
    the best first.
    """
    column = next((c for c in ("accuracy", "harmonic_mean", "base") if any(r.values.get(c) for r in rows)), None)
    if column is None:
        return None
    panels: dict[str, Curves] = {}
    differing = [key for key in ("recipe", "backbone") if len({row.group[key] for row in rows}) > 1]
    for row in rows:
        mean = row.mean(column)
        without_shots = row.group["method"] == "zero_shot"
        if mean is None or not (without_shots or row.group["shots"].isdigit()):
            continue
        shots = 0 if without_shots else int(row.group["shots"])
        name = f"{row.group['method']} {row.group['variant']}".strip()
        panel = panels.setdefault(", ".join(row.group[key] for key in differing), {})
        panel.setdefault(name, {})[shots] = (100 * mean, 100 * (row.sd(column) or 0))
    panels = {name: panel for name, panel in panels.items() if len({s for points in panel.values() for s in points} - {0}) > 1}
    every = sorted({shots for panel in panels.values() for points in panel.values() for shots in points} - {0})
    if len(every) < 2:
        return None
    label = "harmonic mean of base and new, %" if column == "harmonic_mean" else f"{column} %, test images"
    return _png(_draw_panels(panels, every, label))


def _draw_panels(panels: Mapping[str, Curves], every: Sequence[int], label: str) -> Any:
    """A figure of curves: panel title -> line -> shots -> (mean, standard deviation) in percent; shots 0 is a level."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    names = sorted({name for panel in panels.values() for name in panel}, key=lambda name: -_height(panels, name))
    across = min(len(panels), 2)
    down = -(-len(panels) // across)
    figure = Figure(figsize=(4.6 * across + 2.2, 3.6 * down + 0.2), dpi=150, layout="constrained")
    for number, (title, panel) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(down, across, number)
        for place, name in enumerate(names):
            points = sorted(panel.get(name, {}).items())
            if not points:
                continue
            if points[0][0] == 0:
                axes.axhline(points[0][1][0], linestyle="--", color="grey", linewidth=1.2)
                continue
            aside = 2 ** (0.16 * (place / max(len(names) - 1, 1) - 0.5))  # so that the bars of equal figures stand side by side
            axes.errorbar(
                [shots * aside for shots, _ in points], [mean for _, (mean, _) in points], [sd for _, (_, sd) in points],
                elinewidth=0.8, capsize=1.5, **_style(place),
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(every, [str(shots) for shots in every])
        axes.minorticks_off()
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -2), min(high, 102))  # a deviation may reach beyond what a share can be
        axes.set_title(plain_text(title), fontsize=10)
        axes.grid(alpha=0.3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.supxlabel("images per class (shots)", fontsize=10)
    figure.supylabel(label, fontsize=10)
    figure.legend(handles=_legend(names, panels), loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _legend(names: Sequence[str], panels: Mapping[str, Curves]) -> list[Any]:
    from matplotlib.lines import Line2D

    levels = {name for panel in panels.values() for name, points in panel.items() if 0 in points}
    grey = {"linestyle": "--", "color": "grey", "linewidth": 1.2}
    return [Line2D([], [], label=plain_text(n), **(grey if n in levels else _style(i))) for i, n in enumerate(names)]


def _style(place: int) -> dict[str, Any]:
    """Colour, marker and dash of a line, different for the first fifty."""
    dashes = ("-", "--", "-.", ":", (0, (1, 4)))
    return {
        "color": f"C{place % 10}", "marker": "osD^v"[place % 5], "markersize": 4, "linewidth": 1.4,
        "linestyle": dashes[place // 10 % len(dashes)],
    }  # fmt: skip


def _height(panels: Mapping[str, Curves], name: str) -> float:
    """Mean over panels of a line's figure at its most shots."""
    last = [panel[name][max(panel[name])][0] for panel in panels.values() if name in panel]
    return sum(last) / len(last)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def bars(rows: Sequence[Row], labels: Sequence[str]) -> bytes | None:
    """Return a PNG of the headline figure of each row, best first, with its standard deviation; None for a single row.

    Args:
        rows: of the comparison; the best `MOST` are drawn.
        labels: the group keys that tell rows apart.
    """
    from .compare import heading

    column = next((c for c in HEADLINES if any(r.values.get(c) for r in rows)), None)
    shown = [(row, mean) for row in rows if column is not None and (mean := row.mean(column)) is not None]
    if column is None or len(shown) < 2:
        return None
    shown = sorted(shown, key=lambda pair: -pair[1])[:MOST]
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 0.9 + 0.28 * len(shown)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    names = [" ".join(row.group[key] for key in labels if row.group[key]) or row.group["method"] for row, _ in shown]
    colours = ["#9aa7af" if row.group["method"] == "zero_shot" else "#0b7a75" for row, _ in shown]
    sds = [100 * (row.sd(column) or 0) for row, _ in shown]
    spread: dict[str, Any] = {"xerr": sds, "ecolor": "#1d2429", "capsize": 2} if any(sds) else {}
    axes.barh(range(len(shown)), [100 * mean for _, mean in shown], color=colours, **spread)
    axes.set_yticks(range(len(shown)), [plain_text(name) for name in names], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"{heading(column)}, %")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return _png(figure)


def page(
    rows: Sequence[Row],
    labels: Sequence[str],
    columns: Sequence[str],
    notes: Sequence[str],
    picture: bytes | None,
    chart: bytes | None = None,
    papers: Sequence[PaperTable] = (),
) -> str:
    """Return the comparison as one HTML page without outside references."""
    from .compare import LESS_IS_BETTER, each_seed, footnotes, heading

    means = {c: [mean for row in rows if (mean := row.mean(c)) is not None] for c in columns}
    best = {c: (min if c in LESS_IS_BETTER else max)(found, default=None) for c, found in means.items()}
    body = [
        {
            "labels": [row.label(name) for name in labels],
            "count": len(row.seeds),
            "cells": [(row.show(c), row.mean(c) is not None and row.mean(c) == best[c]) for c in columns],
        }
        for row in rows
    ]
    return environment().get_template("compare.html.jinja").render(
        labels=labels, headings=[heading(c) for c in columns], rows=body, seeds=each_seed(rows), notes=notes,
        footnotes=footnotes(rows), papers=papers,
        picture=base64.b64encode(picture).decode() if picture else None,
        chart=base64.b64encode(chart).decode() if chart else None, most=MOST if len(rows) > MOST else None,
    )  # fmt: skip


@functools.cache  # compiling the templates takes longer than filling them
def environment() -> jinja2.Environment:
    """The Jinja environment of the pages: templates from the package, every text escaped."""
    import jinja2 as jinja

    folder = resources.files(__package__).joinpath("assets")
    loader = jinja.FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8"))
    return jinja.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)


def plain_text(text: str) -> str:
    """Text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")
