"""Run folders: making the next one, and finding the one a word on the command line means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from .errors import RunError, nearest

State = Literal["finished", "unfinished", "any"]
RECIPE, METRICS = "recipe.yaml", "metrics.json"
_GRID = "grid-"
_current: list[Path] = []


def new_run_dir(recipe_name: str, base: Path | str = "runs") -> Path:
    """Make the next free folder `<base>/<recipe_name>/<nnn>`; two processes never get the same one."""
    parent = Path(base).expanduser() / recipe_name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        numbers = [int(p.name) for p in parent.iterdir() if p.name.isdecimal()]
        number = max(numbers, default=0) + 1
        while True:
            path = parent / f"{number:03d}"
            try:
                path.mkdir()
            except FileExistsError:
                number += 1
                continue
            return mark_current(path)
    except OSError as err:
        raise RunError(
            f"No run folder can be made in {parent}: {err.strerror}. Set run.dir to another folder."
        ) from None


def mark_current(path: Path) -> Path:
    """Remember the run this process works on, for the hint after Ctrl-C; returns it."""
    _current[:] = [path]
    return path


def current() -> Path | None:
    """The run this process works on, if any."""
    return _current[0] if _current else None


def is_run(path: Path) -> bool:
    """True for a folder that holds a run's recipe."""
    return (path / RECIPE).is_file()


def is_adapter(path: Path) -> bool:
    """True for the folder of an adapter by itself: adapter/vN of a run, or an exported one."""
    return (path / "adapter.json").is_file()


def is_finished(path: Path) -> bool:
    """True once the metrics are there: they are written last."""
    return (path / METRICS).is_file()


def runs_below(folder: Path) -> list[Path]:
    """The runs in a recipe's or a grid's folder, oldest number first, grid cells after numbered runs."""
    if not folder.is_dir():
        return []
    children = sorted((p for p in folder.iterdir() if p.is_dir()), key=_order)
    found = [p for p in children if is_run(p)]
    for grid in (p for p in children if p.name.startswith(_GRID)):
        found += [p for p in sorted(grid.iterdir(), key=_order) if is_run(p)]
    return found


def _order(path: Path) -> tuple[int, int, str]:
    number = int(path.name) if path.name.isdecimal() else 0
    return (0 if path.name.isdecimal() else 1, number, path.name)


def resolve_run(word: str, base: Path | str = "runs", state: State = "finished") -> Path:
    """Find the run a word means: a path, `recipe/nnn`, `recipe/grid-x/cell`, or `recipe` for its newest run.

    Args:
        word: What the user wrote.
        base: The folder of all runs.
        state: Which runs `recipe` alone chooses from, and what a named run must be.

    Raises:
        RunError: if there is none; says what is there.
    """
    base = Path(base)
    folder = _folder(word, base)
    if is_run(folder):
        _demand(folder, word, state)
        return folder
    found = runs_below(folder)
    if not found and (folder / "adapter.json").is_file():
        raise RunError(
            f"{word} is an adapter; the run it belongs to is wanted here, the folder with {RECIPE}."
        )
    if not found:
        raise RunError(f"{word} holds no run: no {RECIPE} in {folder} or right below it.")
    matching = [p for p in found if state == "any" or is_finished(p) == (state == "finished")]
    if not matching:
        names = _listed(p.relative_to(folder).as_posix() for p in found)
        hint = f" Continue one with: limpet resume {short(found[-1], base)}" if state == "finished" else ""
        raise RunError(f"{word} has no {state} run; there are: {names}.{hint}")
    numbered = [p for p in matching if p.name.isdecimal()]  # in their order: a clock may be set back, and copies are new files
    candidates = [*numbered[-1:], *(p for p in matching if not p.name.isdecimal())]
    return max(enumerate(candidates), key=lambda pair: (_age(pair[1]), pair[0]))[1]


def expand_runs(words: Sequence[str], base: Path | str = "runs") -> list[Path]:
    """Find the runs that several words mean: a run, a grid for all its finished cells, a recipe for all its finished runs.

    Raises:
        RunError: there is no such run, or a grid or recipe has none that is finished.
    """
    result: list[Path] = []
    for word in words:
        folder = _folder(word, Path(base))
        if is_run(folder):
            found = [resolve_run(word, base)]
        elif folder.name.startswith(_GRID):
            found = [p for p in sorted(folder.iterdir(), key=_order) if is_run(p) and is_finished(p)]
            if not found:
                raise RunError(f"The grid {word} has no finished cell yet.")
        else:
            found = [p for p in runs_below(folder) if is_finished(p)] or [resolve_run(word, base)]
        result += found
    return list(dict.fromkeys(result))


def short(path: Path, base: Path | str = "runs") -> str:
    """A run's name as the user would write it: `recipe/nnn` below `base`, the path elsewhere."""
    try:
        return path.resolve().relative_to(Path(base).resolve()).as_posix()
    except ValueError:
        return str(path)


def _folder(word: str, base: Path) -> Path:
    """The folder a word means, run or not."""
    if not word.strip():
        raise RunError("The name of the run is empty.")
    given, below = Path(word).expanduser(), base / word
    candidates = [p for p in (given, below) if p.is_dir()]
    for path in candidates:  # a folder of images called like a recipe must not hide the recipe's runs
        if is_run(path) or runs_below(path):
            return path
    if candidates:
        return candidates[0]
    if given.is_file():
        if given.name in (RECIPE, METRICS) and is_run(given.parent):
            return given.parent
        raise RunError(f"{word} is a file; a run is a folder, like {base}/quickstart/001.")
    return _unknown(word, base)


def _unknown(word: str, base: Path) -> Path:
    recipes = sorted(p.name for p in base.iterdir() if p.is_dir()) if base.is_dir() else []
    if not recipes:
        raise RunError(
            f"There is no run '{word}', and no run at all in {base.resolve()}. First: limpet fit quickstart"
        )
    name, _, rest = word.partition("/")
    if rest and name in recipes:
        inside = [p.relative_to(base / name).as_posix() for p in runs_below(base / name)]
        raise RunError(f"{name} has no run '{rest}'; there are: {_listed(inside)}.{nearest(rest, inside)}")
    hint = nearest(name, recipes)
    raise RunError(f"There is no run '{word}' in {base}.{hint} There are runs of: {_listed(recipes)}.")


def _demand(path: Path, word: str, state: State) -> None:
    if state == "finished" and not is_finished(path):
        raise RunError(f"{word} is not finished (no {METRICS}). Continue it with: limpet resume {word}")
    if state == "unfinished" and is_finished(path):
        raise RunError(f"{word} is finished; there is nothing to resume. Its results: {path / METRICS}")


def _age(path: Path) -> float:
    marker = path / METRICS if is_finished(path) else path / RECIPE
    return marker.stat().st_mtime


def _listed(names: Iterable[str], most: int = 12) -> str:
    every = [re.sub(r"\s", " ", n) for n in names]
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "") or "none"
