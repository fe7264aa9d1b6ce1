"""SUN397: 397 kinds of scenes."""

from __future__ import annotations

from pathlib import Path

from .reading import Entry, Found, lines, need


def read(folder: Path, variant: str | None = None) -> Found:
    """Read ClassName.txt, Training_01.txt and Testing_01.txt (the first of the ten official partitions)."""
    images = need(folder / "SUN397", folder / "a").name
    top = folder / images if images == "SUN397" else folder
    start = "SUN397/" if images == "SUN397" else ""

    def listed(name: str) -> list[str]:
        return lines(folder / name, top / name, folder / "Partitions" / name)

    order = [_words(line.strip("/")) for line in listed("ClassName.txt")]
    found = [
        Entry(f"{start}{line.lstrip('/')}", _words(line.strip("/").rpartition("/")[0]), split)
        for file, split in (("Training_01.txt", "train"), ("Testing_01.txt", "test"))
        for line in listed(file)
    ]
    return Found(found, order, split="Training_01.txt and Testing_01.txt")


def _words(path: str) -> str:
    """Class name of a folder: its letter goes, and what is inside or outside comes first (as CoOp)."""
    return " ".join(reversed(path.split("/")[1:]))
