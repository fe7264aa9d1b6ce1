"""Images listed in a CSV or Parquet file, one row each."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from .base import DataModule
from .configs import TableConfig
from .errors import DataError, counted, nearest, some
from .listing import (
    Listing,
    Sample,
    clean,
    delimiter_of,
    find_classnames,
    find_root,
    order_classes,
    refuse_twice,
    split_word,
    texts_for,
    without_empty,
)
from .table_regions import TableRegions


class TableDataModule(DataModule):
    """A table with the columns path and label (or class); optionally split, group, domain, caption, value.

    Cells are text as written (`no`, `007`, `NA` are names). With both `class` and a whole-number `label`, the
    label gives the order of the classes. Boxes (x0, y0, x1, y1) and masks are regions of the image: rows that share
    image, class and caption are regions of one sample. Without regions, rows that repeat an image with another caption
    add to its `captions`. Further columns are kept in `Sample.extra`.
    """

    config: TableConfig

    def listing(self) -> Listing:
        """Read the table."""
        table = find_table(self.config)
        root = find_root(self.config.root) if self.config.root else table.parent
        return read_listing(table, root, self.config)


def read_listing(table: Path, root: Path, config: TableConfig) -> Listing:
    """Read a table into a listing.

    Args:
        table: the CSV, TSV or Parquet file.
        root: folder that paths start from; the table's own folder is tried next.
        config: names of the columns.

    Raises:
        DataError: a column or all images are missing, a split is unknown, or labels contradict each other.
    """
    frame = read_table(table)
    columns = _Columns(frame, table, config)
    report: list[str] = []
    faults: list[str] = []
    rows = _labelled(frame, columns, table, report)
    names = [clean(name) for name in frame[columns.name].iloc[rows]]
    given = find_classnames(config.classnames, (root, table.parent))
    labels = {**given.labels, **_label_numbers(frame, rows, names, columns, table)}
    class_names = order_classes(names, labels)
    number = {name: i for i, name in enumerate(class_names)}
    paths, files, missing = locate(frame[columns.path].iloc[rows].tolist(), root, table)
    if missing:
        if len(missing) == len(paths):
            where = f"{root}" if root == table.parent else f"{root} nor in {table.parent}"
            raise DataError(
                f"None of the {len(paths)} images of {table} exists: looked in {where}, for instance for "
                f"{missing[0]}. Set data.root to the folder that the paths start from."
            )
        faults.append(
            f"{counted(len(missing), 'file')} of {table.name} missing and left out: {some(missing, 4)}."
        )
    splits = read_splits(frame, rows, columns.split, table)
    cells = {key: frame[column].iloc[rows].tolist() for key, column in columns.kept.items()}
    regions = TableRegions(frame, rows, paths, table, root, config)
    samples: list[Sample] = []
    kept_splits: list[str | None] = []
    members, repeated = _gathered(names, files, regions, table, cells.get("caption"))
    captioned = 0 if regions.any else sum(len(rows_of_one) - 1 for rows_of_one in members)
    often = Counter(paths[rows[0]] for rows in members)
    for rows_of_one in members:
        i = rows_of_one[0]
        extra: dict[str, Any] = {key: column[i] for key, column in cells.items()}
        group, domain = extra.pop("group", "") or None, extra.pop("domain", "") or None
        if "value" in extra:
            extra["value"] = _value(extra["value"])
        if "caption" in extra:
            extra["captions"] = list(dict.fromkeys(cells["caption"][k] for k in rows_of_one))
        path = paths[i]
        if regions.any:
            extra |= regions.extra(rows_of_one)
            shared = often[path] > 1
            group = group or (path if shared else None)  # the samples of one image stay on one side
            path = regions.name(i, names[i], shared)
        if regions.views is not None:
            extra["views"] = tuple(regions.view(k, str(files[k])) for k in rows_of_one)
        samples.append(Sample(path, number[names[i]], -1, Path(str(files[i])), group, domain, extra))
        kept_splits.append(splits[i] if splits else None)
    if captioned:
        report.append(f"{counted(captioned, 'row')} of {table.name} give an image a further caption.")
    if repeated:
        report.append(f"{counted(repeated, 'row')} of {table.name} repeat an image and are left out.")
    present = {sample.label for sample in samples}
    if len(present) < len(class_names):
        gone = [name for name in class_names if number[name] not in present]
        report.append(f"No file of {some(gone)} exists; left out of the classes.")
        class_names, samples = without_empty(class_names, samples)
    texts, sentences = texts_for(class_names, given, config.classnames)
    return Listing(
        class_names, texts, samples, kept_splits if splits else None, [*report, *faults, *sentences], faults, regions.offers
    )


def _gathered(
    names: Sequence[str],
    files: Sequence[str | None],
    regions: TableRegions,
    table: Path,
    captions: Sequence[str] | None = None,
) -> tuple[list[list[int]], int]:
    """Rows that make up one sample each, its regions or captions, and how many rows say nothing new."""
    found: dict[tuple[str, ...], list[int]] = {}
    repeated = 0
    for i, file in enumerate(files):
        if file is None:
            continue
        key = regions.key(i, names[i]) if regions.any else (regions.paths[i],)
        earlier = found.setdefault(key, [])
        if earlier and names[earlier[0]] != names[i]:
            what = "object" if regions.views is not None else "image"
            raise DataError(
                f"{table}: the {what} {key[0]} has the labels '{names[earlier[0]]}' and "
                f"'{names[i]}'. Images with "
                "several labels (multi-label) cannot be classified here: keep one row for each image."
            )
        said = {"", *(captions[k].strip() for k in earlier)} if captions is not None else set()
        if earlier and not regions.any and (captions is None or captions[i].strip() in said):
            repeated += 1
            continue
        earlier.append(i)
    return list(found.values()), repeated


def read_table(table: Path) -> pd.DataFrame:
    """Read a CSV (comma, semicolon, tab) or Parquet file with every cell as text, empty where there is none.

    Raises:
        DataError: missing, empty, not UTF-8, or not a table.
    """
    try:
        if table.suffix.lower() in (".parquet", ".pq"):
            frame = pd.read_parquet(table)
            for column in frame.columns:
                frame[column] = [_text(cell) for cell in frame[column]]
        else:
            with table.open(encoding="utf-8-sig") as file:
                delimiter = delimiter_of(file.readline())
            texts: dict[str, Any] = {"sep": delimiter, "dtype": str, "keep_default_na": False, "na_filter": False}
            heading = pd.read_csv(table, header=None, nrows=1, encoding="utf-8-sig", **texts)
            refuse_twice([name.strip() for name in heading.iloc[0]], table)  # of two columns `label`, pandas calls one `label.1`
            frame = pd.read_csv(table, encoding="utf-8-sig", **texts)
    except UnicodeDecodeError:
        raise DataError(f"{table} is not UTF-8; save it again as CSV UTF-8.") from None
    except DataError:
        raise
    except (ValueError, OSError) as error:
        raise DataError(f"{table} cannot be read as a table: {error}") from error
    frame.columns = pd.Index([str(column).strip() for column in frame.columns])
    refuse_twice(list(frame.columns), table)
    if frame.empty:
        raise DataError(f"{table} has no rows.")
    return frame


def _text(cell: Any) -> str:
    """A Parquet cell as text; whole numbers that nulls turned into floats lose their ".0"."""
    if cell is None or cell is pd.NA or cell is pd.NaT or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


class _Columns:
    """Which column plays which part."""

    def __init__(self, frame: pd.DataFrame, table: Path, config: TableConfig) -> None:
        self._known = list(frame.columns)
        self._table = table
        self.path = self._need(config.path_column, "path_column")
        self.label: str | None = None
        if config.label_column:
            self.name = self._need(config.label_column, "label_column")
        elif "class" in self._known:
            self.name = "class"
            self.label = "label" if "label" in self._known else None
        else:
            self.name = self._need("label", "label_column")
        self.domain = self._need(config.domain_column, "domain_column") if config.domain_column else None
        self.split = config.split_column if config.split_column in self._known else None
        if self.split is None and config.split_column != TableConfig.split_column:
            self._need(config.split_column, "split_column")
        if self.split == self.domain:
            self.split = None  # the column says where an image comes from, not what it is for
        self.kept: dict[str, str] = {}
        for key in ("group", "caption", "value"):
            column = str(getattr(config, f"{key}_column"))
            if column in self._known:
                self.kept[key] = column
            elif column != getattr(TableConfig, f"{key}_column"):
                self._need(column, f"{key}_column")
        if self.domain:
            self.kept["domain"] = self.domain
        used = {self.path, self.name, self.label, self.split, *self.kept.values()}
        self.kept.update({column: column for column in self._known if column not in used})

    def _need(self, column: str, key: str) -> str:
        if column not in self._known:
            raise DataError(
                f"{self._table} has no column '{column}' (data.{key}); its columns are "
                f"{some(self._known, 20)}."
                f"{nearest(column, self._known)}"
            )
        return column


def find_table(config: Any) -> Path:
    """The table that `data.table` names, else labels.csv in `data.root`.

    Raises:
        DataError: there is none.
    """
    if not config.table:
        root = find_root(config.root)
        table = root / "labels.csv"
        if table.is_file():
            return table
        found = sorted(
            p.name for p in root.iterdir() if p.suffix.lower() in (".csv", ".tsv", ".parquet", ".pq")
        )
        raise DataError(
            f"There is no labels.csv in {root}. "
            + (
                f"Found {some(found)}: name one with data.table."
                if found
                else "Name the table with data.table."
            )
        )
    table = Path(config.table).expanduser()
    candidates = (
        [table] if table.is_absolute() or not config.root else [Path(config.root).expanduser() / table, table]
    )
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    folder = candidates[0].parent
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    looked = some([str(candidate) for candidate in candidates])
    raise DataError(
        f"There is no table {table} (data.table); looked for {looked}.{nearest(table.name, names)}"
    )


def _labelled(frame: pd.DataFrame, columns: _Columns, table: Path, report: list[str]) -> list[int]:
    """Positions of the rows with a path and a class."""
    filled = (frame[columns.path].str.strip() != "") & (frame[columns.name].str.strip() != "")
    rows = [int(i) for i in filled.to_numpy().nonzero()[0]]
    if not rows:
        raise DataError(f"No row of {table} has both '{columns.path}' and '{columns.name}'.")
    if len(rows) < len(frame):
        report.append(
            f"{counted(len(frame) - len(rows), 'row')} of {table.name} without path or class left out."
        )
    return rows


def _label_numbers(
    frame: pd.DataFrame, rows: list[int], names: Sequence[str], columns: _Columns, table: Path
) -> dict[str, int]:
    """Order of the classes, from a label column beside the class column or from classes that are numbers."""
    if columns.label is None:
        distinct = set(names)
        return {name: int(name) for name in distinct} if all(map(_is_whole, distinct)) else {}
    pairs = Counter(zip(names, frame[columns.label].iloc[rows].str.strip(), strict=True))
    if not all(_is_whole(label) for _, label in pairs):
        return {}
    numbers: dict[str, int] = {}
    for name, label in sorted(pairs):
        if numbers.setdefault(name, int(label)) != int(label):
            raise DataError(f"{table}: the class '{name}' has the labels {numbers[name]} and {label}.")
    if len(set(numbers.values())) < len(numbers):
        shared, _ = Counter(numbers.values()).most_common(1)[0]
        both = [name for name, label in numbers.items() if label == shared]
        raise DataError(f"{table}: the label {shared} stands for {some(both)}.")
    return numbers


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def read_splits(
    frame: pd.DataFrame, rows: list[int], column: str | None, table: Path
) -> list[str | None] | None:
    """The split that a column gives each of the rows; None without the column, or where it is empty throughout.

    Raises:
        DataError: a cell names no split.
    """
    if column is None:
        return None
    cells = frame[column].iloc[rows].str.strip().tolist()
    words = {cell: split_word(cell) for cell in set(cells)}
    unknown = sorted(cell for cell, split in words.items() if cell and split is None)
    if unknown:
        raise DataError(
            f"{table}: the column '{column}' holds {some(unknown)}, where train, val or test "
            "are expected. If "
            f"it says where an image comes from, set data.domain_column={column}; splits are "
            "then made."
        )
    return [words[cell] for cell in cells] if any(words.values()) else None


def locate(cells: Sequence[str], root: Path, table: Path) -> tuple[list[str], list[str | None], list[str]]:
    """Find the files of path cells: (names relative to root or table, files or None, names of those missing)."""
    bases = list(dict.fromkeys([os.path.abspath(root), os.path.abspath(table.parent)]))  # noqa: PTH100
    paths: list[str] = []
    files: list[str | None] = []
    missing: list[str] = []
    for cell in cells:
        found = None
        for text in dict.fromkeys([cell.strip(), cell.strip().replace("\\", "/")]):
            found = next((f for f in (os.path.join(base, text) for base in bases) if os.path.isfile(f)), None)  # noqa: PTH113, PTH118
            if found:
                break
        files.append(found)
        paths.append(_relative(found, bases) if found else cell.strip())
        if not found:
            missing.append(cell.strip())
    return paths, files, missing


def _relative(file: str, bases: Sequence[str]) -> str:
    """Path below the first base that holds the file, so that moving the folder changes no name; no two files share one."""
    file = os.path.normpath(file)
    for number, base in enumerate(bases):
        if file.startswith(base.rstrip(os.sep) + os.sep):
            name = file[len(base.rstrip(os.sep)) + 1 :]
            if not any(os.path.isfile(os.path.join(earlier, name)) for earlier in bases[:number]):  # noqa: PTH113, PTH118
                file = name
            break
    return file.replace(os.sep, "/")


def _value(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell
