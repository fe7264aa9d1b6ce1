"""Adience: faces in eight groups of age, in five folds by person."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from ..errors import DataError
from .reading import Entry, Found, need

# least age of each of the eight groups; a single age, or another span, belongs to the group that begins before it
STARTS = (0, 4, 8, 15, 25, 38, 48, 60)
FOLDS = 5


def read(folder: Path, variant: str | None = None) -> Found:
    """Read fold_N_data.txt; `variant` is the fold tested on, the others are trained on. Values are 0 to 7."""
    fold = variant or "0"
    if fold not in map(str, range(FOLDS)):
        raise DataError(f"data.variant is '{variant}'; the folds of Adience are 0 to {FOLDS - 1}.")
    entries, unlabelled = [], 0
    for number in range(FOLDS):
        file = need(folder / f"fold_{number}_data.txt")
        with file.open(encoding="utf-8", newline="") as opened:
            for row in csv.DictReader(opened, delimiter="\t"):
                group = age_group(row["age"])
                if group is None:
                    unlabelled += 1
                    continue
                split = "test" if number == int(fold) else "train"
                entries.append(Entry(_path(folder, row), "age", split, row["user_id"], {"value": float(group)}))
    notes = [f"{unlabelled} faces without an age are left out."] if unlabelled else []
    return Found(entries, split=f"fold {fold} for testing, the other four for training", notes=notes)


def age_group(text: str) -> int | None:
    """Number of the group of "(25, 32)" or "35", from 0 to 7; None where there is no age."""
    found = re.search(r"\d+", text or "")
    return None if found is None else sum(int(found[0]) >= start for start in STARTS) - 1


def _path(folder: Path, row: dict[str, str]) -> str:
    tail = f"{row['face_id']}.{row['original_image']}"
    aligned = f"aligned/{row['user_id']}/landmark_aligned_face.{tail}"
    return aligned if (folder / "aligned").is_dir() else f"faces/{row['user_id']}/coarse_tilt_aligned_face.{tail}"
