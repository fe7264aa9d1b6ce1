"""The picture of an explanation."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .compare_plots import plain_text as plain

if TYPE_CHECKING:
    from .explain import Evidence

_TEAL, _GREY = "#0b7a75", "#b9c4ca"
SAID = 8  # texts that are shown of what a method says


def draw(found: Evidence, find: Callable[[str], Any]) -> bytes:
    """Return a PNG: the image, the patches that speak for the class, the likeliest classes, then other evidence below.

    Args:
        found: the evidence.
        find: gives the picture for the path of a training image, or None.
    """
    from matplotlib.figure import Figure

    said = found.because[:SAID]
    heights = [3.2, *([0.7 + 0.24 * len(said)] if said else []), *([2.1] if found.support else [])]
    heights += [0.5 + 0.24 * len(found.words)] if found.words else []
    figure = Figure(figsize=(9.6, sum(heights) + 0.5), dpi=130, layout="constrained")
    parts = np.ravel(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False))
    figure.suptitle(plain(f"What speaks for: {found.label}"), fontsize=12)
    _first(parts[0], found)
    if said:
        _because(parts[1], said)
    if found.support:
        _support(parts[2 if said else 1], found, find)
    if found.words:
        _words(parts[-1], found)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _first(part: Any, found: Evidence) -> None:
    axes = part.subplots(1, 3 if found.patches is not None else 2)
    axes[0].imshow(found.picture)
    axes[0].set_title("what the model sees", fontsize=9)
    if found.patches is not None:
        height, width = found.picture.shape[:2]
        axes[1].imshow(found.picture.mean(2), cmap="gray", vmin=-0.3, vmax=1.3)
        drawn = axes[1].imshow(
            found.patches, cmap="inferno", alpha=0.6, vmin=0, vmax=1, interpolation="bilinear", extent=(0, width, height, 0)
        )
        axes[1].set_xlim(0, width)
        axes[1].set_ylim(height, 0)
        axes[1].set_title("patches that speak for it", fontsize=9)
        bar = part.colorbar(drawn, ax=axes[1], shrink=0.8, ticks=[0, 1])
        bar.ax.set_yticklabels(["none", "most"], fontsize=8)
    for one in axes[:-1]:
        one.set_axis_off()
    names = [plain(name if len(name) <= 28 else f"{name[:27]}…") for name, _ in found.top]
    places = range(len(names))
    colours = [_TEAL if name == found.label else _GREY for name, _ in found.top]
    axes[-1].barh(places, [100 * p for _, p in found.top], color=colours)
    axes[-1].set_yticks(places, names, fontsize=8)
    axes[-1].invert_yaxis()
    axes[-1].set_xlim(0, 100)
    axes[-1].tick_params(axis="x", labelsize=8)
    axes[-1].set_xlabel("probability, %", fontsize=8)
    for side in ("top", "right"):
        axes[-1].spines[side].set_visible(False)


def _because(part: Any, said: Sequence[tuple[str, float]]) -> None:
    part.suptitle("What the method says for it", fontsize=10)
    axis = part.subplots()
    names = [plain(text if len(text) <= 70 else f"{text[:69]}…") for text, _ in said]
    bars = axis.barh(range(len(said)), [number for _, number in said], color=_TEAL)
    axis.bar_label(bars, [f"{number:.2f}" for _, number in said], fontsize=8, padding=3)
    axis.set_yticks(range(len(said)), names, fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.1)
    axis.set_xticks([])
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)


def _support(part: Any, found: Evidence, find: Callable[[str], Any]) -> None:
    part.suptitle("Training images nearest to it (weight in the decision)", fontsize=10)
    axes = np.atleast_1d(part.subplots(1, len(found.support)))
    for axis, one in zip(axes, found.support, strict=True):
        image = find(one.path) if one.path else None
        if image is not None:
            image = image.convert("RGB")
            image.thumbnail((640, 640))  # Matplotlib keeps several copies of what it shows
            axis.imshow(image)
        else:
            axis.text(0.5, 0.5, "image not\nfound", ha="center", va="center", fontsize=8, color="grey", transform=axis.transAxes)
        label = one.label if len(one.label) <= 24 else f"{one.label[:23]}…"
        axis.set_title(plain(f"{label}\n{one.weight:.3f}"), fontsize=8, color=_TEAL if one.label == found.label else "black")
        axis.set_axis_off()


def _words(part: Any, found: Evidence) -> None:
    title = "Words nearest to the learned tokens (distance"
    title += f"; two words lie {found.between_words:.2f} apart)" if found.between_words is not None else ")"
    part.suptitle(title, fontsize=10)
    axis = part.subplots()
    axis.set_axis_off()
    rows = [[plain(f"{word}  {distance:.2f}") for word, distance in words] for _, words in found.words]
    names = [name for name, _ in found.words]
    table = axis.table(rows, rowLabels=names, loc="center", cellLoc="left", colWidths=[0.26] * len(rows[0]))
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    for cell in table.get_celld().values():
        cell.set_edgecolor("#d9e0e4")
