"""What is known of each benchmark: read from the JSON and text files beside this one (standard library only)."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Facts:
    """Facts about a data set.

    Attributes:
        title: name in papers.
        folders: usual names of its folder; the first is that of the CoOp project.
        template: the hand-crafted sentence of zero-shot CLIP; None for data to be ordered.
        template_source: who wrote the template: "CoOp", or "ours".
        classes: number of classes, or None where it varies.
        sizes: images in train, val and test under the field's protocol, or None.
        split_file: name of the field's split file, or None.
        images: folder that the paths in the split file start from, "" for the data set's own.
        torchvision: class in torchvision.datasets that can download it, or None.
        home: where to get it.
        wanted: what its folder must hold.
        ordering: what its images are ordered by; None for classes.
    """

    title: str
    folders: list[str]
    template: str | None
    template_source: str
    classes: int | None
    sizes: list[int] | None
    split_file: str | None
    images: str | None
    torchvision: str | None
    home: str
    wanted: str
    ordering: str | None = None


@functools.cache
def read_json(name: str) -> dict[str, Any]:
    """The content of a JSON file beside this one."""
    content: dict[str, Any] = json.loads(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))
    return content


@functools.cache
def read_lines(name: str) -> list[str]:
    """The lines of a text file beside this one."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8").splitlines()


@functools.cache
def data_sets() -> dict[str, Facts]:
    """Facts of every data set, by the word for `data.dataset`."""
    return {name: Facts(**facts) for name, facts in read_json("data_sets.json")["data_sets"].items()}


def templates(name: str, kind: str) -> list[str] | None:
    """Sentences around the class names of a data set: "hand_crafted", "ensemble", or None for those of the recipe."""
    own = data_sets()[name].template
    if kind == "recipe" or own is None:
        return None
    if kind == "hand_crafted":
        return [own]
    general: list[str] = list(read_json("data_sets.json")["simple_templates"])
    return general if name.startswith("imagenet") else [*general, own]


def imagenet_names() -> dict[str, str]:
    """WordNet id -> English name of the 1000 classes, in label order."""
    pairs = (line.partition(" ") for line in read_lines("imagenet_names.txt"))
    return {wnid: name for wnid, _, name in pairs}
