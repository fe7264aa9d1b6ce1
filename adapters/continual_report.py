"""The part of a report about a stream: heat map of the accuracy matrix, and curves over sessions."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import files

MATRIX, CURVES = "continual_matrix.png", "continual_curves.png"
FIGURES = (
    ("last", "Last", "right on all sessions' test images after the last session"),
    ("average_incremental", "Avg", "mean over sessions of the accuracy on all sessions so far"),
    ("forgetting", "Forgetting", "best accuracy on a session less its last one, mean over sessions"),
    ("backward_transfer", "Backward transfer", "last accuracy on a session less that right after its training"),
    ("transfer", "Transfer", "accuracy on sessions before they were trained"),
    ("task_last", "Last by session", "mean of the last row of the matrix"),
    ("task_average", "Avg by session", "mean of the whole matrix"),
)


def write_pictures(run_dir: Path, stream: Mapping[str, Any]) -> None:
    """Write the heat map and the curves beside the report."""
    files.write_bytes(run_dir / MATRIX, heat_map(stream))
    files.write_bytes(run_dir / CURVES, curves(stream))


def block(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the report shows of a stream; None for a run without one."""
    stream = metrics.get("continual")
    if not stream:
        return None
    figures = [(name, f"{100 * stream[key]:.1f}", words) for key, name, words in FIGURES if stream.get(key) is not None]
    kept = [
        (name, f"{100 * entry['zero_shot']:.1f}" if entry["zero_shot"] is not None else "",
         f"{100 * entry['after'][-1]:.1f}" if entry["after"] and entry["after"][-1] is not None else "not answered")
        for name, entry in stream["retention"].get("data", {}).items()
    ]  # fmt: skip
    pictures = [base64.b64encode(picture).decode() for picture in (heat_map(stream), curves(stream))]
    return {"figures": figures, "kept": kept, "pictures": pictures, "by": stream["by"], "regulariser": stream["regulariser"]}


def headline(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """The cards on top of the report of a stream of data sets, which has no label space of all classes; else none."""
    stream = metrics.get("continual")
    if not stream or stream["by"] != "tasks":
        return []
    cards = []
    for key, words in (
        ("task_last", "right on average over the data sets, after the last one"),
        ("transfer", "right on data sets before they were trained"),
        ("forgetting", "of accuracy on a data set was forgotten"),
    ):
        if stream[key] is not None:
            cards.append({"name": words, "value": f"{100 * stream[key]:.1f} %", "note": ""})
    return cards


def heat_map(stream: Mapping[str, Any]) -> bytes:
    """A[i][j] as a PNG: rows are sessions trained, columns sessions tested; what cannot be answered is left white."""
    import numpy as np

    matrix, names = stream["matrix"], [session["name"] for session in stream["sessions"]]
    values = np.array([[np.nan if v is None else 100 * v for v in row] for row in matrix], dtype=float)
    side = min(0.62 * len(names) + 2.2, 12)
    figure, axes = _axes((side + 0.6, side))
    picture = axes.imshow(values, vmin=0, vmax=100, cmap="viridis")
    if len(names) <= 14:
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                if np.isfinite(value):
                    axes.text(j, i, f"{value:.0f}", ha="center", va="center", color="white" if value < 60 else "black", fontsize=9)
    short = [name if len(name) <= 12 else f"{name[:11]}…" for name in names]
    step = max(1, len(names) // 20)
    places = range(0, len(names), step)
    axes.set_xticks(places, [short[i] for i in places], rotation=90 if max(map(len, short)) > 3 else 0)
    axes.set_yticks(places, [short[i] for i in places])
    axes.set_xlabel("tested on session")
    axes.set_ylabel("after training session")
    axes.set_title("Accuracy, %", fontsize=11)
    figure.colorbar(picture, ax=axes, shrink=0.8)
    return _png(figure)


def curves(stream: Mapping[str, Any]) -> bytes:
    """Accuracy on the sessions so far and on data that are never trained on, after each session, as a PNG."""
    figure, axes = _axes((6.4, 4.0))
    at = range(1, len(stream["matrix"]) + 1)

    def draw(values: list[float | None], **style: Any) -> None:
        axes.plot(at, [float("nan") if v is None else 100 * v for v in values], **style)

    draw(stream["seen"], marker="o", color="#1f5fa8", label="sessions so far")
    draw(stream["zero_shot_seen"], linestyle="--", color="#1f5fa8", alpha=0.6, label="the same, without training")
    palette = ("#c2571a", "#3a8a4d", "#8a4fa3", "#777777")
    for number, (name, entry) in enumerate(stream["retention"].get("data", {}).items()):
        colour = palette[number % len(palette)]
        draw(entry["after"], marker="s", color=colour, label=f"{name} (never trained on)")
        if entry["zero_shot"] is not None:
            axes.axhline(100 * entry["zero_shot"], linestyle=":", color=colour, alpha=0.7)
    axes.set_ylim(0, 100)
    axes.set_xticks(list(at)[:: max(1, len(at) // 20)])
    axes.set_xlabel("sessions trained")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)
    return _png(figure)


def _axes(size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return buffer.getvalue()
