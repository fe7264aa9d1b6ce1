"""Grids: the cells of a recipe with several seeds, methods or other values, each a run folder of its own."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from . import compare, files, runner, runs
from .errors import RunError
from .ranks import job
from .show import console

if TYPE_CHECKING:
    from .recipe import Recipe


NAME_BYTES = 150  # of a cell's folder name; file systems allow 255


def cell_name(recipe: Recipe) -> str:
    """Folder name of a cell, from its values: "method=coop,seed=1".

    Where a name cannot be spelled out (too long, or signs that no folder name should have) a digest of the values ends
    it, so that two cells never share a folder.
    """
    text = ",".join(f"{key}={value}" for key, value in sorted(recipe.cell.items()))
    name = re.sub(r"[^\w=,.+-]+", "_", text)
    if name == text and len(name.encode()) <= NAME_BYTES:
        return name
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    short = name.encode("utf-8", "ignore")[: NAME_BYTES - len(digest) - 1].decode("utf-8", "ignore")
    return f"{short}-{digest}"


def grid_dir(recipes: Sequence[Recipe]) -> Path:
    """Folder of a grid; the same command gives the same folder."""
    fixed = [{"cell": r.cell, "recipe": r.to_dict()} for r in recipes]
    digest = hashlib.sha256(json.dumps(fixed, sort_keys=True, default=str).encode()).hexdigest()[:10]
    first = recipes[0]
    return Path(first.run.dir) / (first.run.name or first.name) / f"grid-{digest}"


def in_own_process(recipe: Recipe, cell: Path) -> None:
    """Run a cell as a command of its own: with several devices Lightning repeats the whole command line.

    Raises:
        RunError: the command failed.
    """
    if not (cell / "recipe.yaml").exists():
        cell.mkdir(parents=True, exist_ok=True)
        runner.write_recipe(recipe, cell)
    done = subprocess.run([sys.executable, "-m", __package__, "resume", str(cell)], check=False)
    if done.returncode:
        raise RunError(f"It ended with code {done.returncode}; its own words are above.")


def run_cells(recipes: Sequence[Recipe], folder: Path) -> dict[str, str]:
    """Run every cell that is not finished; images are listed once for all of them.

    Returns:
        Name of each cell that could not run -> why.
    """
    failed: dict[str, str] = {}
    user_errors = runner.user_errors()
    with importlib.import_module(".datamodules.sharing", __package__).sharing():
        for number, recipe in enumerate(recipes, 1):
            name = cell_name(recipe)
            cell = folder / name
            head = f"[bold]cell {number} of {len(recipes)}[/bold] {escape(name)}"
            if (cell / "metrics.json").exists():
                console.print(f"{head}: already finished")
                continue
            console.rule(head)
            runs.mark_current(cell)
            try:
                if recipe.trainer.devices > 1:
                    in_own_process(recipe, cell)
                elif (cell / "recipe.yaml").exists():
                    runner.resume(cell)
                else:
                    runner.fit(recipe, cell)
            except user_errors as error:
                if runs.is_finished(cell):  # by another process, meanwhile
                    continue
                failed[name] = str(error)
                console.print(f"[red]this cell cannot run:[/red] {escape(str(error))}")
    return failed


def fit_grid(recipes: Sequence[Recipe]) -> Path:
    """Run every cell that is not finished, continue interrupted ones, print mean and standard deviation over seeds.

    A cell that cannot run (a method that does not support the backbone, say) is reported, and the others go on.

    Raises:
        RunError: at the end, when a cell could not run; at once, in a job of several processes.
    """
    if job() is not None:
        raise RunError("A grid is not for a job of several processes (SLURM, torchrun): start one job for each cell.")
    folder = grid_dir(recipes)
    folder.mkdir(parents=True, exist_ok=True)
    failed = run_cells(recipes, folder)
    files.write_json(folder / "grid.json", {"cells": [cell_name(r) for r in recipes], "failed": failed})
    finished = [folder / cell_name(r) for r in recipes if (folder / cell_name(r) / "metrics.json").exists()]
    if finished:
        compare.print_table(finished)
    console.print(f"grid folder: [bold]{escape(str(folder))}[/bold]")
    if failed:
        first = next(iter(failed))
        raise RunError(f"{len(failed)} of {len(recipes)} cells could not run; the first, {first}: {failed[first]}")
    return folder


