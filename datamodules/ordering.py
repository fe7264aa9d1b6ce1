"""Images listed in a CSV or Parquet file with a number to order them by."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .configs import DataConfig, OrderingConfig
from .errors import DataError, counted, nearest, some
from .listing import Listing, Sample, clean, default_text, find_root
from .ordered import OrderedDataModule
from .splitting import complete
from .table import find_table, locate, read_splits, read_table

_LEAST = 4  # images in a stratum, on average
BINS = 5  # of values that are not few whole numbers, when images are split


class OrderingDataModule(OrderedDataModule):
    """A table with the columns path and value; optionally category, instruction, split and group.

    Without a split, every category is divided 50/20/30 with all values on each side, by group where there are groups.
    An image may stand in several rows with different categories (how many cats, how many dogs).
    """

    config: OrderingConfig

    def listing(self) -> Listing:
        """Read the table."""
        config = self.config
        table = find_table(config)
        root = find_root(config.root) if config.root else table.parent
        frame = read_table(table)
        columns = _columns(frame, table, config)
        report: list[str] = []
        rows, values = _valued(frame, columns, table, config, report)
        cells = {key: [str(c).strip() for c in frame[column].iloc[rows]] for key, column in columns.items()}
        categories = [clean(name) for name in cells["category"]] if "category" in cells else [config.value_column] * len(rows)
        paths, files, missing = locate(frame[columns["path"]].iloc[rows].tolist(), root, table)
        if len(missing) == len(paths):
            raise DataError(
                f"None of the {len(paths)} images of {table} exists: looked in {root}, for instance for {missing[0]}. "
                "Set data.root to the folder that the paths start from."
            )
        faults = []
        if missing:
            faults.append(f"{counted(len(missing), 'file')} of {table.name} missing and left out: {some(missing, 4)}.")
        given = read_splits(frame, rows, columns.get("split"), table)
        names = sorted({name for name, file in zip(categories, files, strict=True) if file})
        number = {name: i for i, name in enumerate(names)}
        samples: list[Sample] = []
        splits: list[str | None] = []
        often, repeated, other = Counter(paths), 0, 0
        seen: dict[tuple[str, str], float] = {}
        for i, (path, file, category) in enumerate(zip(paths, files, categories, strict=True)):
            if file is None:
                continue
            if (path, category) in seen:
                repeated += 1
                other += seen[path, category] != values[i]
                continue
            seen[path, category] = values[i]
            group = cells["group"][i] if "group" in cells else ""
            text = cells["instruction"][i] if "instruction" in cells else ""
            text = text or instruction_for(config, category, "category" in cells)
            extra = {"value": values[i], "category": category, "instruction": text}
            shared = often[path] > 1 and "category" in cells  # rows of one image stay on one side
            name = f"{path} [{category}]" if shared else path
            samples.append(Sample(name, number[category], -1, Path(file), group or (path if shared else None), None, extra))
            splits.append(given[i] if given else None)
        if repeated:
            report.append(f"{counted(repeated, 'row')} of {table.name} repeat an image and are left out.")
        if other:
            report.append(f"{counted(other, 'row')} of those with another {columns['value']}: the first of an image counts.")
        texts = {name: _instructions(samples, number[name]) for name in names}
        whole = Listing(names, texts, samples, splits if given else None, [*report, *faults], faults)
        return stratified(whole, config)


def instruction_for(config: OrderingConfig, category: str, named: bool) -> str:
    """The instruction of a category where the table gives none; with `named`, the table names categories."""
    words = default_text(category)
    if config.instruction:
        return " ".join(config.instruction.replace("{category}", words).split())
    about = default_text(config.value_column)
    return f"Sort the images by {about}." if not named else f"Sort the images of {words} by {about}."


def stratified(listing: Listing, config: DataConfig) -> Listing:
    """Give every image a split, such that each split holds all values of each category; groups stay together."""
    strata: list[tuple[int, Any]] = [(0, 0)] * len(listing.samples)
    by_label: dict[int, list[int]] = defaultdict(list)
    for i, sample in enumerate(listing.samples):
        by_label[sample.label].append(i)
    for label, members in by_label.items():
        for i, level in zip(members, levels([listing.samples[i].extra["value"] for i in members]), strict=True):
            strata[i] = (label, level)
    names = sorted(set(strata))
    number = {stratum: i for i, stratum in enumerate(names)}
    shadow = [replace(s, label=number[strata[i]]) for i, s in enumerate(listing.samples)]
    words = [f"{listing.class_names[label]}\0{level}" for label, level in names]
    splits, report = complete(Listing(words, {}, shadow, listing.splits), config)
    report = [sentence.replace("each class was", "each value of each category was") for sentence in report]
    return replace(listing, splits=splits, report=[*listing.report, *report])


def levels(values: Sequence[float]) -> list[int]:
    """The stratum of each value: the value itself where there are at most ten, else its fifth of the order.

    Strata of fewer than four images could not be divided; where values are that rare, there are fewer and wider ones.
    """
    distinct = sorted(set(values))
    if len(distinct) <= 10 and len(values) >= _LEAST * len(distinct):
        return [distinct.index(value) for value in values]
    bins = max(1, min(BINS, len(values) // _LEAST))
    edges = np.quantile(np.asarray(values), np.linspace(0, 1, bins + 1)[1:-1])
    return [int(level) for level in np.searchsorted(edges, values, side="right")]


def _instructions(samples: Sequence[Sample], label: int) -> list[str]:
    return list(dict.fromkeys(s.extra["instruction"] for s in samples if s.label == label))


def _columns(frame: pd.DataFrame, table: Path, config: OrderingConfig) -> dict[str, str]:
    """Key -> column of those that the table has.

    Raises:
        DataError: a column is missing that is needed, or that was named.
    """
    known = [str(column) for column in frame.columns]
    found: dict[str, str] = {}
    for key in ("path", "value", "category", "instruction", "split", "group"):
        column = getattr(config, f"{key}_column")
        needed = key in ("path", "value") or column != getattr(OrderingConfig, f"{key}_column")
        if column is None:
            continue
        if column in known:
            found[key] = column
        elif needed:
            raise DataError(
                f"{table} has no column '{column}' (data.{key}_column); its columns are {some(known, 20)}."
                f"{nearest(column, known)}"
            )
    return found


def _valued(
    frame: pd.DataFrame, columns: dict[str, str], table: Path, config: OrderingConfig, report: list[str]
) -> tuple[list[int], list[float]]:
    """Rows with a path and a value in the wanted range, and the values."""
    rows: list[int] = []
    values: list[float] = []
    empty = outside = 0
    low = -math.inf if config.min_value is None else config.min_value
    high = math.inf if config.max_value is None else config.max_value
    cells = zip(frame[columns["path"]], frame[columns["value"]], strict=True)
    for row, (path, text) in enumerate(cells):
        if not str(path).strip() or not str(text).strip():
            empty += 1
            continue
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(
                f"{table}, line {row + 2}: the {columns['value']} '{text}' is not a number to order by. "
                "Name another column with data.value_column, or leave the cell empty."
            )
        if low <= value <= high:
            rows.append(row)
            values.append(value)
        else:
            outside += 1
    if empty:
        report.append(f"{counted(empty, 'row')} of {table.name} without path or value left out.")
    if outside:
        report.append(f"{counted(outside, 'row')} of {table.name} outside data.min_value and data.max_value left out.")
    if not rows:
        raise DataError(f"No row of {table} has a path and a '{columns['value']}' that is wanted.")
    if len(set(values)) < 2:
        raise DataError(f"All images of {table} have the same {columns['value']}: there is nothing to order.")
    return rows, values
