"""OxfordPets: 37 breeds of cats and dogs."""

from __future__ import annotations

from pathlib import Path

from .reading import Entry, Found, lines


def read(folder: Path, variant: str | None = None) -> Found:
    """Read annotations/trainval.txt and test.txt: file stem, class from 1 on, species, breed."""
    found, numbers = [], {}
    for file, split in (("trainval", "train"), ("test", "test")):
        for line in lines(folder / "annotations" / f"{file}.txt"):
            if line.startswith("#"):
                continue
            stem, number = line.split()[:2]
            name = stem.rpartition("_")[0].lower()
            numbers[name] = int(number)
            found.append(Entry(f"images/{stem}.jpg", name, split))
    return Found(found, sorted(numbers, key=numbers.__getitem__), split="annotations/trainval.txt and test.txt")
