"""The page and the shots curve of a comparison."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

    from .compare import Row


HEADLINES = ("accuracy", "harmonic_mean", "base", "joint", "spearman", "image_auroc")
MOST = 40  # bars that can be read


def shots_curve(rows: Sequence[Row]) -> bytes | None:
    """Return a PNG of the headline accuracy over shots, a line per method; None unless shots differ."""
    curves: dict[str, list[tuple[int, float, float]]] = {}
    flat: dict[str, float] = {}
    column = next(
        (c for c in ("accuracy", "harmonic_mean", "base") if any(r.values.get(c) for r in rows)), None
    )
    if column is None:
        return None
    where = {key: len({r.group[key] for r in rows}) > 1 for key in ("recipe", "backbone")}
    for row in rows:
        mean = row.mean(column)
        if mean is None:
            continue
        name = " ".join([row.group["method"], *(row.group[key] for key, many in where.items() if many)])
        name = f"{name} {row.group['variant']}".strip()
        if row.group["shots"].isdigit() and row.group["method"] != "zero_shot":
            curves.setdefault(name, []).append(
                (int(row.group["shots"]), 100 * mean, 100 * (row.sd(column) or 0))
            )
        elif row.group["method"] == "zero_shot":
            flat[name] = 100 * mean
    if len({shots for points in curves.values() for shots, _, _ in points}) < 2:
        return None
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(6.4, 4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for name, points in curves.items():
        shots, means, sds = zip(*sorted(points), strict=True)
        axes.errorbar(shots, means, yerr=sds, marker="o", capsize=3, label=plain_text(name))
    for name, mean in flat.items():
        axes.axhline(mean, linestyle="--", color="grey", linewidth=1, label=plain_text(name))
    every = sorted({shots for points in curves.values() for shots, _, _ in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(every, [str(shots) for shots in every])
    axes.set_xlabel("images per class (shots)")
    axes.set_ylabel(
        "harmonic mean of base and new, %" if column == "harmonic_mean" else f"{column} %, test images"
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
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
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def page(
    rows: Sequence[Row],
    labels: Sequence[str],
    columns: Sequence[str],
    notes: Sequence[str],
    picture: bytes | None,
    chart: bytes | None = None,
) -> str:
    """Return the comparison as one HTML page without outside references."""
    from .compare import LESS_IS_BETTER, each_seed, heading

    means = {c: [mean for row in rows if (mean := row.mean(c)) is not None] for c in columns}
    best = {c: (min if c in LESS_IS_BETTER else max)(found, default=None) for c, found in means.items()}
    body = [
        {
            "labels": [row.group[name] for name in labels],
            "count": len(row.seeds),
            "cells": [(row.show(c), row.mean(c) is not None and row.mean(c) == best[c]) for c in columns],
        }
        for row in rows
    ]
    return environment().get_template("compare.html.jinja").render(
        labels=labels, headings=[heading(c) for c in columns], rows=body, seeds=each_seed(rows), notes=notes,
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
