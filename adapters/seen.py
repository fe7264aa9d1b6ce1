"""Data sets that a backbone saw in pretraining, so that their figures are marked (no torch)."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

MARK = "†"


@functools.cache
def _listed() -> dict[str, dict[str, str]]:
    """Backbone -> data set -> what of it was seen."""
    text = resources.files(f"{__package__}.assets").joinpath("seen.json").read_text(encoding="utf-8")
    content: dict[str, dict[str, str]] = json.loads(text)
    return content


def data_name(section: Any) -> str:
    """The name of a data set in metrics.json: the published one's, else that of the data module."""
    return str(getattr(section, "dataset", None) or section.name)


def was_seen(backbone: str, data: str) -> bool:
    """Whether a backbone is known to have seen a data set in pretraining; unknown ones count as unseen."""
    return data in _listed().get(backbone, {})


def sentences(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """A sentence for each (backbone, data set) that was seen, each once."""
    return [
        f"{backbone} saw {_listed()[backbone][data]} in pretraining: its figures on {data} are better than on unseen data."
        for backbone, data in dict.fromkeys(pairs)
        if was_seen(backbone, data)
    ]


def pair(run: Mapping[str, Any]) -> tuple[str, str]:
    """Backbone and data set of a run, from its metrics."""
    return str(run.get("backbone")), str(run.get("data"))
