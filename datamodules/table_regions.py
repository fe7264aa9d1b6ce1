"""Columns of a table that say where in an image something is: boxes, masks, captions, and views of one object."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd

from .configs import TableConfig
from .errors import DataError, nearest, some
from .regions import Box, View

UNITS = ("auto", "pixels", "relative")


class TableRegions:
    """Regions of the rows of a table.

    Rows that share an image and a class (and a caption) describe one sample with several regions; an image may have
    rows of several classes. With `data.view_column`, rows that share its cell are views of one object.

    Args:
        frame: the whole table, every cell as text.
        rows: positions of the rows that are used.
        paths: names of the images of those rows.
        table: the file, for sentences.
        root: folder that the paths of masks start from.
        config: names of the columns.

    Attributes:
        offers: keys that items of this table can carry.

    Raises:
        DataError: a cell is no number, a box is empty or half given, or a mask does not exist.
    """

    def __init__(
        self, frame: pd.DataFrame, rows: list[int], paths: list[str], table: Path, root: Path, config: TableConfig
    ) -> None:
        self.frame, self.rows, self.paths, self.table, self.root, self.config = frame, rows, paths, table, root, config
        if config.box_units not in UNITS:
            raise DataError(f"data.box_units is '{config.box_units}'; known are {', '.join(UNITS)}.")
        columns = list(config.box_columns)
        if len(columns) != 4:
            raise DataError(f"data.box_columns names {len(columns)} columns; it needs four: left, top, right, bottom.")
        there = [column for column in columns if column in frame.columns]
        if there and len(there) < 4:
            missing = next(column for column in columns if column not in there)
            raise DataError(
                f"{table} has the column '{there[0]}' and no '{missing}': a box needs {', '.join(columns)} (data.box_columns)."
            )
        if not there and columns != TableConfig().box_columns:
            self._need(columns[0], "box_columns")
        self.boxed = bool(there)
        self.masked = self._named("mask_column") is not None
        self.captions = self._cells(config.caption_column)
        self.views = self._cells(config.view_column) if self._named("view_column") else None
        self.defects = self._named("anomaly_column")
        every = [self._box(row) for row in range(len(frame))] if there else []
        self.boxes: list[Box | None] = [every[row] for row in rows] if there else [None] * len(rows)
        given = [box for box in every if box is not None]
        fits = all(abs(value) <= 1 for box in given for value in box)
        self.relative = config.box_units == "relative" or (config.box_units == "auto" and fits)
        self.masks = [self._mask(row) for row in rows] if self.masked else [None] * len(rows)
        self._candidates = self._all_boxes(every)
        self.offers = self._offers()

    @property
    def any(self) -> bool:
        """Whether the table says anything about regions, views or defects."""
        return bool(self.offers)

    def key(self, i: int, name: str) -> tuple[str, ...]:
        """What rows of one sample have in common."""
        if self.views is not None:
            return (self.views[i].strip(),)
        return (self.paths[i], name, self._caption(i))

    def extra(self, members: list[int]) -> dict[str, Any]:
        """What a sample of these rows carries."""
        first = members[0]
        boxes = list(dict.fromkeys(box for i in members if (box := self.boxes[i]) is not None))
        found: dict[str, Any] = {"relative": self.relative, "boxes": tuple(boxes)}
        found["masks"] = tuple(dict.fromkeys(mask for i in members if (mask := self.masks[i]) is not None))
        if self._caption(first):
            found["caption"] = self._caption(first)
        if self.boxed:
            found["candidates"] = tuple(self._candidates[self.frame[self.config.path_column].iloc[self.rows[first]].strip()])
        if "anomalous" in self.offers:
            found["anomalous"] = int(any(self._anomalous(i) for i in members))
        return found

    def view(self, i: int, file: str) -> View:
        """A row as a view of an object."""
        mask, cells = self.masks[i], self._cells(self.config.weight_column)
        weight = _number(cells[i]) if cells and cells[i].strip() else 1.0
        if weight is None or not 0 <= weight < math.inf:
            raise DataError(f"{self._line(i)}: the weight '{cells[i]}' is not a number from 0 on (data.weight_column).")
        return View(Path(file), mask, weight)

    def name(self, i: int, name: str, shared: bool) -> str:
        """Name of the sample that begins with row i; `shared` where its image is in several samples."""
        if self.views is not None:
            return self.views[i].strip()
        about = f"{name}: {self._caption(i)}" if self._caption(i) else name
        return f"{self.paths[i]} [{about}]" if shared else self.paths[i]

    def _offers(self) -> tuple[str, ...]:
        found: list[str] = []
        if any(box is not None for box in self.boxes):
            found += ["boxes", "candidates", "candidate_crops", "target"]
        if any(mask is not None for mask in self.masks):
            found += ["masks"]
        if found:
            found += ["crops"]
        if found and self.captions:
            found += ["caption"]
        if self.views is not None:
            found += ["views", "view_masks", "view_weights"]
        if self.defects is not None or any(mask is not None for mask in self.masks):
            found += ["anomalous", "defect"]
        return tuple(found)

    def _all_boxes(self, every: list[Box | None]) -> dict[str, list[Box]]:
        """All boxes of each image, those of rows without a class, too."""
        found: dict[str, dict[Box, None]] = defaultdict(dict)
        for path, box in zip(self.frame[self.config.path_column], every, strict=False):
            if box is not None:
                found[path.strip()][box] = None
        return defaultdict(list, {path: list(boxes) for path, boxes in found.items()})

    def _box(self, row: int) -> Box | None:
        cells = [self.frame[column].iloc[row].strip() for column in self.config.box_columns]
        if not any(cells):
            return None
        numbers = [_number(cell) for cell in cells]
        if any(number is None or not math.isfinite(number) for number in numbers):
            raise DataError(f"{self.table}, line {row + 2}: the box ({', '.join(cells)}) needs four numbers.")
        x0, y0, x1, y1 = (float(number) for number in numbers if number is not None)
        if x1 <= x0 or y1 <= y0:
            raise DataError(
                f"{self.table}, line {row + 2}: the box ({', '.join(cells)}) is empty; its columns are left, top, right, bottom."
            )
        return x0, y0, x1, y1

    def _mask(self, row: int) -> Path | None:
        cell = self.frame[str(self.config.mask_column)].iloc[row].strip()
        if not cell:
            return None
        for base in (self.root, self.table.parent):
            file = Path(base, cell)
            if file.is_file():
                return file
        raise DataError(
            f"{self.table}, line {row + 2}: there is no mask {cell} in {self.root}. If the column '{self.config.mask_column}' "
            "names no files, set data.mask_column=null."
        )

    def _anomalous(self, i: int) -> bool:
        if self.defects is None:
            return self.masks[i] is not None
        cell = self._cells(self.defects)[i].strip().lower()
        if cell in ("", "0", "no", "false", "good", "normal", "ok"):
            return False
        if cell in ("1", "yes", "true", "defect", "bad", "anomalous", "abnormal", "anomaly"):
            return True
        raise DataError(f"{self._line(i)}: '{cell}' (data.anomaly_column) is neither 0 (normal) nor 1 (anomalous).")

    def _caption(self, i: int) -> str:
        return " ".join(self.captions[i].split()) if self.captions else ""

    def _cells(self, column: str | None) -> list[str]:
        if column is None or column not in self.frame.columns:
            return []
        return [str(cell) for cell in self.frame[column].iloc[self.rows]]

    def _named(self, key: str) -> str | None:
        """The column of a key, where the table has it.

        Raises:
            DataError: a column that was named is missing.
        """
        column = getattr(self.config, key)
        if column is not None and column not in self.frame.columns:
            if column != getattr(TableConfig, key):
                self._need(column, key)
            return None
        return None if column is None else str(column)

    def _need(self, column: str, key: str) -> None:
        known = list(map(str, self.frame.columns))
        raise DataError(
            f"{self.table} has no column '{column}' (data.{key}); its columns are {some(known, 20)}.{nearest(column, known)}"
        )

    def _line(self, i: int) -> str:
        return f"{self.table}, line {self.rows[i] + 2}"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
