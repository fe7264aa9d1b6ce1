"""FGVCAircraft: 100 variants of aircraft; the field, too, uses the official split."""

from __future__ import annotations

from pathlib import Path

from .reading import Entry, Found, lines, need


def read(folder: Path, variant: str | None = None) -> Found:
    """Read variants.txt and images_variant_train.txt, _val.txt, _test.txt."""
    base = need(folder / "variants.txt", folder / "data" / "variants.txt").parent
    start = (base / "images").relative_to(folder).as_posix()
    found = []
    for split in ("train", "val", "test"):
        for line in lines(base / f"images_variant_{split}.txt"):
            number, _, name = line.partition(" ")
            found.append(Entry(f"{start}/{number}.jpg", name, split))
    return Found(found, lines(base / "variants.txt"), split="images_variant_train.txt, _val.txt and _test.txt")
