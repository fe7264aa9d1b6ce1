"""The card of an export, with what the run folder around the adapter knows besides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from .artifact_card import card
from .calibration import Calibration
from .compare import read_metrics
from .errors import RunError
from .export_job import Job, Written
from .export_parity import Parity
from .files import write_text
from .runs import RECIPE, runs_below

TITLES = {
    "adapter": "Limpet adapter",
    "merged": "CLIP with trained towers (open_clip)",
    "onnx": "Image classifier (ONNX)",
    "peft": "LoRA for CLIP (peft)",
    "weights": "Class weights for CLIP",
    "hub-folder": "Limpet adapter",
}
_SAME = ("recipe", "method", "backbone", "fingerprint", "protocol", "shots", "data")  # of runs that differ by their seed alone
_SPREAD = {"classification": "accuracy", "ordering": "spearman", "anomaly": "image_auroc"}


def write_card(job: Job, target: str, written: Written, parity: Parity, run: Path, folder: Path) -> None:
    """Write `README.md` into the folder of an export."""
    facts: dict[str, Any] = {"Parity with Limpet": str(parity)}
    root = data_root(run)
    if root is not None:
        facts["Data folder"] = root
    calibration = Calibration.from_dict((job.content.get("info") or {}).get("calibration"))
    if calibration is not None:
        facts["Temperature"] = f"{calibration.temperature:.3g}: the softmax of scores divided by it gives calibrated probabilities"
    if job.content["backbone"]["spec"].get("precision") != "fp32":
        facts["Export"] = "in float32, compared with Limpet in float32"
    text = card(
        job.content,
        job.adapter.task,
        title=f"{TITLES[target]}: {job.method}",
        front=written.front,
        about=written.about,
        loading=written.loading,
        packages=written.packages,
        facts=facts,
        seeds=over_seeds(run, job.adapter.task),
    )
    write_text(folder / "README.md", text)


def data_root(run: Path) -> str | None:
    """Name of the folder of images that a run was fitted on (the name alone: a card is for others)."""
    try:
        recipe = yaml.safe_load((run / RECIPE).read_text(encoding="utf-8"))
        root = recipe["data"]["root"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return None
    return Path(str(root)).name if root else None


def over_seeds(run: Path, task: str) -> list[str]:
    """A line of mean and standard deviation for each label space, where the run was repeated with other seeds."""
    own = _metrics(run)
    if own is None:
        return []
    key = _SPREAD.get(task, "accuracy")
    found: dict[int, Mapping[str, Any]] = {}
    for other in sorted({*runs_below(run.parent), *_runs_around(run)}):
        metrics = _metrics(other)
        if metrics is not None and _alike(metrics, own):
            found[int(metrics["seed"])] = metrics["results"]  # of runs with one seed the newest counts
    found[int(own["seed"])] = own["results"]
    if len(found) < 2:
        return []
    lines = []
    for space in own["results"]:
        values = [results[space][key] for results in found.values() if results.get(space, {}).get(key) is not None]
        if len(values) == len(found):
            average, spread = mean(values), stdev(values)
            shown = f"{100 * average:.1f} ± {100 * spread:.1f} %" if key == "accuracy" else f"{average:.3f} ± {spread:.3f}"
            lines.append(f"{space} {shown}")
    seeds = ", ".join(map(str, sorted(found)))
    return [f"Mean {key} and standard deviation over the seeds {seeds}: {'; '.join(lines)}."] if lines else []


def _runs_around(run: Path) -> Iterator[Path]:
    """Runs of the same recipe: a grid's cells lie one folder deeper."""
    yield from runs_below(run.parent.parent if run.parent.name.startswith("grid-") else run.parent)


def _metrics(run: Path) -> dict[str, Any] | None:
    try:
        metrics = read_metrics(run)
    except RunError:
        return None
    return metrics if "seed" in metrics else None


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    def cell(metrics: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in (metrics.get("cell") or {}).items() if key != "seed"}

    return all(one.get(key) == other.get(key) for key in _SAME) and cell(one) == cell(other)
