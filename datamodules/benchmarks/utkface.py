"""UTKFace: faces with an age from 0 to 116; no official split."""

from __future__ import annotations

import re
from pathlib import Path

from ..images import is_image_name
from .reading import Entry, Found, NotThere


def read(folder: Path, variant: str | None = None) -> Found:
    """List images called AGE_GENDER_RACE_DATE; a name without an age is left out and counted."""
    entries, unnamed = [], 0
    for path in sorted(folder.rglob("*")):
        if not is_image_name(path.name):
            continue
        age = re.match(r"(\d{1,3})_", path.name)
        unnamed += age is None
        if age:
            entries.append(Entry(path.relative_to(folder).as_posix(), "age", extra={"value": float(age[1])}))
    if not entries:
        raise NotThere(folder / "AGE_GENDER_RACE_DATE.jpg")
    return Found(entries, notes=[f"{unnamed} images without an age in their name are left out."] if unnamed else [])
