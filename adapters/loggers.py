"""Where the course of a training is written: `log/metrics.csv` always, and any Lightning logger the recipe names."""

from __future__ import annotations

import csv
import importlib
import inspect
import io
import warnings
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger

from . import plugins
from .errors import RecipeError
from .files import remove
from .nodes import flat
from .ranks import rank
from .recipe import Recipe

FOLDER, METRICS = "log", "metrics.csv"
_SHORT = {"tensorboard": "lightning.pytorch.loggers.TensorBoardLogger"}


class RunLog(Logger):
    """The CSV log of a run, one row for each time something is logged; it goes on where an interrupted run stopped.

    Args:
        folder: the run's folder; the file is log/metrics.csv below it.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / FOLDER / METRICS
        self.rows = read_log(folder)
        self._resumed = bool(self.rows)
        self._changed = False

    @property
    def name(self) -> str:
        """The recipe's and the run's folder."""
        return str(self.path.parent.parent)

    @property
    def version(self) -> str:
        """The folder of the log."""
        return FOLDER

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: recipe.yaml beside the log has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row, or to the row of the same step. What was logged after the checkpoint is dropped: it happens again."""
        number = len(self.rows) if step is None else step
        if self._resumed:
            self.rows = [row for row in self.rows if float(row.get("step") or 0) < number]
            self._resumed = False
        plain = {key: value.item() if hasattr(value, "item") else value for key, value in metrics.items()}
        if self.rows and float(self.rows[-1].get("step", -1)) == number:
            self.rows[-1].update(plain)
        else:
            self.rows.append({"step": number, **plain})
        self._changed = True

    @rank_zero_only
    def save(self) -> None:
        """Write the file beside, then rename."""
        if not self._changed:
            return
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f".{METRICS}.part")
        try:
            beside.write_text(buffer.getvalue(), encoding="utf-8")  # once an epoch: not worth a flush to the disk
            beside.replace(self.path)
        except OSError:
            remove(beside)
            raise
        self._changed = False

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.save()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's log/metrics.csv that can be read; none where there is no such file. A warning says what cannot."""
    path = folder / FOLDER / METRICS
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = []
    lost = 0
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            table = csv.DictReader(file)
            lost += "step" not in (table.fieldnames or ())
            for row in table:
                values = {key: value for key, value in row.items() if value not in (None, "")}
                if "step" in values and all(key and _is_number(value) for key, value in values.items()):
                    rows.append(values)
                else:
                    lost += 1
    except (OSError, ValueError, csv.Error):
        lost += 1
    if lost:
        text = f"{path} is damaged: {len(rows)} of its rows are kept, and what else is in it is left out."
        warnings.warn(text, UserWarning, stacklevel=2)
    return rows


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def named(recipe: Recipe) -> list[tuple[type[Logger], dict[str, Any]]]:
    """Classes and arguments of the loggers that the recipe names beside the CSV log, which is always there.

    Raises:
        RecipeError: one does not exist, is no Lightning logger, or its package is not installed.
    """
    found = []
    for entry in recipe.trainer.loggers:
        path, arguments = next(iter(entry.items())) if isinstance(entry, Mapping) else (entry, {})
        if path != "csv":
            found.append((_find(_SHORT.get(str(path), str(path)), str(path)), dict(arguments or {})))
    return found


def open_loggers(recipe: Recipe, run_dir: Path) -> list[Logger]:
    """The CSV log and the recipe's loggers, in that order; they write below the run's log/ where they write files.

    Raises:
        RecipeError: a logger refuses its arguments.
    """
    opened: list[Logger] = [RunLog(run_dir)]
    for kind, arguments in named(recipe):
        accepted = inspect.signature(kind.__init__).parameters
        if "save_dir" in accepted and "save_dir" not in arguments:
            arguments["save_dir"] = str(run_dir)
            arguments |= {key: value for key, value in (("name", FOLDER), ("version", "")) if kind.__name__ == "TensorBoardLogger"}
        try:
            logger = kind(**arguments)
            if rank() == 0:
                settings = flat(yaml.safe_load(recipe.to_yaml()))
                logger.log_hyperparams({k: v if isinstance(v, str | int | float | bool) else str(v) for k, v in settings.items()})
        except ModuleNotFoundError as error:
            raise RecipeError(f"trainer.loggers names {kind.__name__}, which needs more: {_line(error)}.") from None
        except Exception as error:  # loggers are other people's code and talk to services
            raise RecipeError(f"trainer.loggers: {kind.__name__} cannot be started: {_line(error)}.") from error
        opened.append(logger)
    return opened


def log_results(loggers: Sequence[Logger], metrics: Mapping[str, Any]) -> None:
    """Write the results of a run as a last row: `test/SPACE/METRIC`. A logger that fails is named in a warning, no more."""
    values = {
        f"test/{space}/{key}": float(value)
        for space, numbers in metrics["results"].items()
        for key, value in numbers.items()
        if isinstance(value, int | float) and key not in ("images", "classes")
    }
    if isinstance(metrics.get("harmonic_mean"), int | float):
        values["test/harmonic_mean"] = float(metrics["harmonic_mean"])
    steps = [float(row["step"]) for row in getattr(loggers[0], "rows", ()) if "loss" in row]
    step = int(max(steps, default=-1)) + 1
    for logger in loggers:
        try:
            logger.log_metrics(values, step=step)
            logger.save()
            logger.finalize("success")
        except Exception as error:  # the run's folder holds the numbers all the same
            text = f"{type(logger).__name__} could not log the results: {_line(error)}. They are in metrics.json."
            warnings.warn(text, UserWarning, stacklevel=2)


def _find(path: str, written: str) -> type[Logger]:
    module, _, name = path.rpartition(".")
    if not module.startswith("lightning."):
        plugins.demand(f"The logger {written}")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (Exception, SystemExit) as error:  # whatever that module does while it is imported
        raise RecipeError(f"trainer.loggers names {written}, and {module} does not import: {_line(error)}.") from None
    if not (inspect.isclass(found) and issubclass(found, Logger)):
        what = "does not exist" if found is None else "is no subclass of lightning.pytorch.loggers.Logger"
        raise RecipeError(f"trainer.loggers names {written}, which {what}. Write its dotted path, as in "
                          "lightning.pytorch.loggers.TensorBoardLogger.")  # fmt: skip
    return found


def _line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
