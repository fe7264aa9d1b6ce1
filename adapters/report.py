"""`report.html`: one run, from the files of its folder, as a page that needs no network and no statistics course."""

from __future__ import annotations

import base64
import importlib
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import continual_report, csv_files, files
from .compare import harmonic_mean, read_metrics
from .compare_plots import environment
from .report_extras import extras
from .report_parts import Picture, is_right, learning_curves, reliability, surest

Row = dict[str, str]
SPACES = {
    "all": ("All classes", "every class is a possible answer"),
    "base": ("Base classes", "classes it was trained on; only they are possible answers"),
    "new": ("New classes", "classes it never saw in training; only they are possible answers"),
    "joint": ("Base and new together", "every class is a possible answer"),
    "task:": ("All data sets of the stream", "only the classes of its own data set are possible answers"),
}
_ELSEWHERE = {"other": "Other data: ", "shift": "Same classes, other images: "}
_BARS, _MATRIX, _MISTAKES, _PAIRS = 60, 40, 12, 12
_TABLE = (
    ("accuracy", "Accuracy"),
    ("balanced_accuracy", "Balanced"),
    ("macro_f1", "Macro F1"),
    ("ece", "Calibration error"),
)


def write_report(
    run_dir: str | Path,
    metrics: Mapping[str, Any] | None = None,
    thumbnail: Callable[[str], Any] | None = None,
    pictures: Sequence[Picture] = (),
) -> Path:
    """Write `report.html` into a run's folder and return its path.

    Args:
        run_dir: A run's folder with metrics.json, and predictions.csv, per_class.csv, split.json, recipe.yaml
            as far as they exist.
        metrics: The metrics, for a run whose metrics.json is not written yet.
        thumbnail: Gives the PIL image for a path of predictions.csv, or None; by default the file is looked for
            as it is named and below the recipe's `data.root`.
        pictures: What a task shows of its own, behind the learning curve.

    Raises:
        RunError: If the run is not finished or a file is damaged.
    """
    folder = Path(run_dir)
    text = render(folder, metrics, thumbnail, pictures)
    files.write_bytes(folder / "report.html", text.encode("utf-8", "replace"))
    return folder / "report.html"


def render(
    folder: Path,
    metrics: Mapping[str, Any] | None = None,
    thumbnail: Callable[[str], Any] | None = None,
    pictures: Sequence[Picture] = (),
) -> str:
    """Return the page of a run; see `write_report`."""
    metrics = metrics if metrics is not None else read_metrics(folder)
    predictions = csv_files.read_rows(folder / "predictions.csv", csv_files.PREDICTIONS)
    classes = csv_files.read_rows(folder / "per_class.csv", csv_files.PER_CLASS)
    recipe = folder / "recipe.yaml"
    source = recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else ""
    # the space in which every class may be answered says most; predictions of one space only, so images count once
    have = {row["space"] for row in predictions} or set(metrics["results"])
    space = next((s for s in ("all", "joint", "base", "new") if s in have), "all")
    if space not in have and any(s.startswith("task:") for s in have):  # an image belongs to one task
        space = "task:"
    shown = [row for row in predictions if row["space"] == space or (space == "task:" and row["space"].startswith(space))]
    texts = {row["class"]: row["text"] or row["class"] for row in classes}
    wrong = sorted((row for row in shown if not is_right(row)), key=lambda row: -_number(row["probability"]))
    find = thumbnail or _finder(source)
    return str(
        environment()
        .get_template("report.html.jinja")
        .render(
            metrics=metrics,
            facts=_facts(metrics),
            headline=continual_report.headline(metrics) or _headline(metrics, wrong, shown),
            columns=_columns(metrics),
            table=_table(metrics),
            extras=extras(metrics),
            space=SPACES.get(space, (space, "")),
            groups=_bars(classes, metrics),
            matrix=_matrix(shown, texts),
            pairs=_pairs(wrong, texts),
            curves=learning_curves(folder),
            pictures=pictures,
            reliability=reliability(shown),
            calibrated=reliability(shown, "calibrated"),
            surest=surest(shown),
            mistakes=[_mistake(row, texts, find) for row in wrong[:_MISTAKES]],
            wrong=len(wrong),
            images=len(shown),
            recipe=source,
            continual=continual_report.block(metrics),
        )
    )


def _facts(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = {
        "recipe": "Recipe", "method": "Method", "backbone": "Backbone", "protocol": "Protocol", "seed": "Seed",
        "shots": "Training images per class",
        "temperature": "Temperature (fitted on validation images)", "trainable_parameters": "Trained numbers", "split_hash": "Split",
        "fingerprint": "Backbone fingerprint", "limpet": "Limpet",
    }  # fmt: skip
    facts = []
    for key, name in names.items():
        value = metrics.get(key) if key != "temperature" else (metrics.get("calibration") or {}).get(key)
        if isinstance(value, float):
            value = f"{value:.3g}"
        if value is not None:
            text = f"{value:,}" if isinstance(value, int) and key == "trainable_parameters" else str(value)
            facts.append((name, text[:16] + "..." if len(text) == 64 else text))
    return facts


def _headline(metrics: Mapping[str, Any], wrong: Sequence[Row], shown: Sequence[Row]) -> list[dict[str, str]]:
    """The cards on top: the number, what it is, and zero-shot beside it."""
    results, zero = metrics["results"], metrics.get("zero_shot") or {}
    cards: list[dict[str, str]] = []

    def card(name: str, value: Any, before: Any) -> None:
        if isinstance(value, int | float):
            without = f"without training: {100 * before:.1f} %" if isinstance(before, int | float) else ""
            cards.append({"name": name, "value": f"{100 * value:.1f} %", "note": without})

    if "base" in results and "new" in results:
        for space, name in (("base", "on classes it was trained on"), ("new", "on classes it never saw")):
            card(f"right {name}", results[space].get("accuracy"), (zero.get(space) or {}).get("accuracy"))
        base, new = ((zero.get(space) or {}).get("accuracy") for space in ("base", "new"))
        both = None
        if isinstance(base, int | float) and isinstance(new, int | float):
            both = harmonic_mean(base, new)
        card("both together (harmonic mean)", metrics.get("harmonic_mean"), both)
    else:
        space = "all" if "all" in results else next(iter(results))
        names = {"accuracy": "of test images right", "balanced_accuracy": "right on average over classes",
                 "macro_f1": "macro F1 (rare classes count fully)"}  # fmt: skip
        for key, name in names.items():
            card(name, results[space].get(key), (zero.get(space) or {}).get(key))
    if shown:
        cards.append(
            {"name": "wrong answers", "value": str(len(wrong)), "note": f"of {len(shown)} test images"}
        )
    return cards


def _title(space: str) -> str:
    """Name of a label space: one of the protocol's, or further data ("other:NAME", "shift:NAME")."""
    kind, _, name = space.partition(":")
    if kind == "task":
        return name
    return _ELSEWHERE[kind] + name if kind in _ELSEWHERE else SPACES.get(space, (space, ""))[0]


def _columns(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    top = sorted({key for values in metrics["results"].values() for key in values if key.startswith("top")})
    return [*_TABLE, *((key, f"Among best {key[3:]}") for key in top)]


def _table(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table: for each label space this run and zero-shot."""
    rows = []
    zero = metrics.get("zero_shot") or {}
    for space, values in metrics["results"].items():
        controls = [(name.replace("_", " "), c.get(space)) for name, c in (metrics.get("controls") or {}).items()]
        for who, numbers in (
            (metrics.get("method", "this run"), values),
            *controls,
            ("without training", zero.get(space)),
        ):
            if numbers and not (who == "without training" and metrics.get("method") == "zero_shot"):
                cells = [
                    "" if not isinstance(numbers.get(k), int | float) else f"{100 * numbers[k]:.1f}"
                    for k, _ in _columns(metrics)
                ]
                rows.append({
                    "space": _title(space), "who": who, "cells": cells,
                    "images": numbers.get("images", ""), "classes": numbers.get("classes", ""),
                    "own": numbers is values,
                })  # fmt: skip
    return rows


def _bars(rows: Sequence[Row], metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per label space the classes, worst first."""
    groups = []
    spaces = list(dict.fromkeys(row["space"] for row in rows))
    if {"base", "new", "joint"} <= set(spaces):
        spaces.remove("joint")  # the same classes once more
    for space in spaces:
        members = [row for row in rows if row["space"] == space]
        counted = sorted(
            (row for row in members if row["accuracy"]), key=lambda row: _number(row["accuracy"])
        )
        bars = [
            {
                "name": row["text"] or row["class"],
                "title": row["class"],
                "percent": f"{100 * _number(row['accuracy']):.1f}",
                "zero": f"{100 * _number(row['zero_shot_accuracy']):.1f}"
                if row["zero_shot_accuracy"]
                else None,
                "images": row["images"],
            }
            for row in counted[:_BARS]
        ]
        groups.append({
            "name": _title(space), "bars": bars, "more": max(0, len(counted) - _BARS),
            "empty": [row["text"] or row["class"] for row in members if not row["accuracy"]][:20],
        })  # fmt: skip
    return groups


def _matrix(rows: Sequence[Row], texts: Mapping[str, str]) -> dict[str, Any] | None:
    """The confusion matrix, where it is small enough to be read."""
    names = list(
        dict.fromkeys([*texts, *(row["label"] for row in rows), *(row["predicted"] for row in rows)])
    )
    shown = {row[key] for row in rows for key in ("label", "predicted")}
    names = [name for name in names if name in shown]
    if not 2 <= len(names) <= _MATRIX:
        return None
    counts = Counter((row["label"], row["predicted"]) for row in rows)
    totals = Counter(row["label"] for row in rows)
    body = []
    for name in names:
        cells = []
        for answer in names:
            number = counts[name, answer]
            share = number / totals[name] if totals[name] else 0.0
            cells.append({"n": number, "share": f"{share:.3f}", "right": name == answer,
                          "title": f"{texts.get(name, name)} → {texts.get(answer, answer)}: {number}"})  # fmt: skip
        body.append({"name": texts.get(name, name), "cells": cells})
    return {"names": [texts.get(name, name) for name in names], "rows": body}


def _pairs(wrong: Sequence[Row], texts: Mapping[str, str]) -> list[tuple[str, str, int]]:
    """The confusions that happen most often."""
    counts = Counter((row["label"], row["predicted"]) for row in wrong)
    best = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_PAIRS]
    return [(texts.get(a, a), texts.get(b, b), number) for (a, b), number in best]


def _mistake(row: Row, texts: Mapping[str, str], find: Callable[[str], Any]) -> dict[str, Any]:
    return {
        "path": row["path"],
        "true": texts.get(row["label"], row["label"]),
        "answer": texts.get(row["predicted"], row["predicted"]),
        "percent": f"{100 * _number(row['probability']):.0f}",
        "image": _thumbnail(row["path"], find),
    }


def _thumbnail(path: str, find: Callable[[str], Any]) -> str | None:
    """A small JPEG as base64, or None where the image cannot be had."""
    try:
        image = find(path)
        if image is None:
            return None
        image = image.convert("RGB")
        image.thumbnail((320, 320))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
    except (OSError, ValueError, SyntaxError, MemoryError):
        return None
    return base64.b64encode(buffer.getvalue()).decode()


def _finder(recipe: str) -> Callable[[str], Any]:
    """Look for images as they are named and below the recipe's `data.root`."""
    root: Path | None = None
    try:
        from omegaconf import OmegaConf

        named = OmegaConf.select(OmegaConf.create(recipe), "data.root") if recipe else None
        root = Path(str(named)).expanduser() if named else None
    except Exception:  # thumbnails are a help, and a recipe can be broken in many ways
        root = None

    def find(path: str) -> Any:
        from PIL import ImageOps

        images = importlib.import_module(".datamodules.images", __package__)
        for place in ([root / path] if root is not None else []) + [Path(path)]:
            if place.is_file():
                return ImageOps.exif_transpose(images.open_image(place))
        return None

    return find


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
