"""Food101: 101 dishes."""

from __future__ import annotations

from pathlib import Path

from .reading import Entry, Found, lines


def read(folder: Path, variant: str | None = None) -> Found:
    """Read meta/train.txt and test.txt: class/number."""
    found = [
        Entry(f"images/{line}.jpg", line.partition("/")[0], split)
        for split in ("train", "test")
        for line in lines(folder / "meta" / f"{split}.txt")
    ]
    return Found(found, split="meta/train.txt and test.txt")
