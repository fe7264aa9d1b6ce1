"""UCF101: 101 actions, from the middle frame of each video."""

from __future__ import annotations

import re
from pathlib import Path

from .reading import Entry, Found, lines, need


def read(folder: Path, variant: str | None = None) -> Found:
    """Read classInd.txt, trainlist01.txt and testlist01.txt; a group is a scene, cut into several videos."""
    lists = need(folder / "ucfTrainTestlist")
    order = [_words(line.split()[1]) for line in lines(lists / "classInd.txt")]
    found = []
    for file, split in (("trainlist01.txt", "train"), ("testlist01.txt", "test")):
        for line in lines(lists / file):
            action, _, video = line.split()[0].partition("/")
            name = _words(action)
            scene = re.search(r"_g(\d+)_", video)
            group = f"{name} {scene[1]}" if scene else None
            found.append(Entry(f"UCF-101-midframes/{name}/{video.removesuffix('.avi')}.jpg", name, split, group))
    return Found(found, order, split="trainlist01.txt and testlist01.txt")


def _words(action: str) -> str:
    """ApplyEyeMakeup -> Apply_Eye_Makeup, which is also how folders of middle frames are called."""
    return "_".join(re.findall("[A-Z][^A-Z]*", action))
