"""DTD: 47 textures."""

from __future__ import annotations

from pathlib import Path

from .reading import Entry, Found, lines


def read(folder: Path, variant: str | None = None) -> Found:
    """Read labels/train1.txt, val1.txt and test1.txt (the first of the ten official splits)."""
    found = [
        Entry(f"images/{line}", line.partition("/")[0], split)
        for split in ("train", "val", "test")
        for line in lines(folder / "labels" / f"{split}1.txt")
    ]
    return Found(found, split="labels/train1.txt, val1.txt and test1.txt")
