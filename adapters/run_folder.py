"""Finding run folders by path or by name. Standard library only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import RunError, nearest

METRICS = "metrics.json"


def is_finished(folder: Path) -> bool:
    """Whether a run is complete: its metrics are written last."""
    return (folder / METRICS).is_file()


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    return (
        any((folder / name).is_file() for name in (METRICS, "recipe.yaml")) or (folder / "adapter").is_dir()
    )


def find_run(reference: str | Path, root: str | Path = "runs") -> Path:
    """Return the folder of one run.

    Args:
        reference: A path, `recipe/nnn` below `root`, or `recipe` (its newest finished run).
        root: The folder of all runs.

    Raises:
        RunError: If there is none; the sentence says where it was looked for.
    """
    for folder in (Path(reference), Path(root) / reference):
        if not folder.is_dir():
            continue
        if is_run(folder) or (folder / "adapter.json").is_file():
            return folder
        below = _runs_below(folder)
        finished = [run for run in below if is_finished(run)]
        if finished:
            return max(finished, key=lambda run: ((run / METRICS).stat().st_mtime_ns, run.name))
        if below:
            raise RunError(
                f"No run in {folder} is finished (found {len(below)} unfinished, the newest is {below[-1]}). "
                f"Continue it with: limpet resume {below[-1]}"
            )
    known = [p.name for p in Path(root).iterdir() if p.is_dir()] if Path(root).is_dir() else []
    raise RunError(
        f"No run found for {str(reference)!r}: neither a run folder at that path nor one in {Path(root)}/."
        f"{nearest(str(reference), known)} Make a run with: limpet fit RECIPE"
    )


def find_runs(reference: str | Path, root: str | Path = "runs") -> list[Path]:
    """Return all runs a reference stands for: the run itself, or every run (and grid cell) below a folder.

    Raises:
        RunError: If there is none.
    """
    for folder in (Path(reference), Path(root) / reference):
        if folder.is_dir():
            found = [folder] if is_run(folder) else _runs_below(folder)
            if found:
                return found
    return [find_run(reference, root)]


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read the metrics of a finished run.

    Raises:
        RunError: If the run is unfinished or the file is damaged or of a newer format.
    """
    path = folder / METRICS
    if not path.is_file():
        raise RunError(
            f"The run {folder} is not finished (it has no {METRICS}). Go on with: limpet resume {folder}"
        )
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}.") from None
    if not isinstance(metrics, dict) or not isinstance(metrics.get("results"), dict):
        raise RunError(f"{path} does not hold the results of a run.")
    if metrics.get("format", 1) != 1:
        raise RunError(
            f"{path} has format {metrics['format']}; this Limpet reads format 1. Install a newer Limpet."
        )
    return metrics


def _runs_below(folder: Path) -> list[Path]:
    """Runs at most three folders down (recipe / grid / cell), in order of name."""
    level, found = [folder], []
    for _ in range(3):
        children = [child for parent in level for child in sorted(parent.iterdir()) if child.is_dir()]
        found += [child for child in children if is_run(child)]
        level = [child for child in children if not is_run(child)]
    return sorted(found)
