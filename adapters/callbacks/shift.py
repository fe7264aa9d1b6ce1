"""Domain generalisation: the trained classes on other images (another camera, another hospital, drawings)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..adapter import Adapter
from ..classes import ClassSet
from ..errors import LimpetError
from .cross_dataset import Target, TargetCallback

SHIFT = "shift:"


def match_classes(trained: ClassSet, data: Any) -> dict[str, str]:
    """Trained class -> the class of `data` that means the same.

    First by equal names, then by a text name (or name) in common, whatever its case and underscores; each class of the
    data is given away once.
    """
    found = {name: name for name in trained.names if name in data.class_texts}
    words: dict[str, str] = {}
    for name in data.class_names:
        if name not in found:
            for text in (name, *data.class_texts[name]):
                words.setdefault(_plain(text), name)
    for name in trained.names:
        if name not in found:
            texts = [_plain(text) for text in (name, *trained.texts[name])]
            match = next((words[t] for t in texts if t in words), None)
            if match is not None:
                found[name] = match
                words = {text: other for text, other in words.items() if other != match}
    return {name: found[name] for name in trained.names if name in found}


def shift_target(name: str, data: Any, trained: ClassSet, candidates: str = "named") -> Target:
    """Other images of the trained classes.

    Args:
        name: what to call them.
        data: their data module, set up.
        trained: the classes trained on.
        candidates: "named": the trained classes that the data name can be answered; "all": every trained class.

    Raises:
        LimpetError: the data name none of the trained classes.
    """
    matched = match_classes(trained, data)
    if not matched:
        raise LimpetError(
            f"evaluate.shift.{name} names none of the trained classes: it has {_some(data.class_names)}; trained were "
            f"{_some(trained.names)}. Text names (classnames.csv, classes.texts) are compared, too."
        )
    missing = [n for n in trained.names if n not in matched]
    unknown = [n for n in data.class_names if n not in matched.values()]
    renamed = {a: b for a, b in matched.items() if a != b}
    # the matched classes come first, so that the labels of the data count in the candidates
    classes = trained.only([*matched, *(missing if candidates == "all" else ())])
    note = f"{SHIFT}{name} has images of {len(matched)} of {len(trained)} trained classes"
    if missing:
        fate = "stay possible answers" if candidates == "all" else "are no possible answers there"
        note += f"; {_some(missing)} {fate}"
    if renamed:
        note += "; matched by text: " + _some([f"{b} = {a}" for a, b in renamed.items()])
    if unknown:
        note += f"; not trained and left out: {_some(unknown)}"
    return Target(f"{SHIFT}{name}", data.restrict(list(matched.values())), classes, f"{note}.")


class DomainShift(TargetCallback):
    """Measure on other images of the trained classes when a fit ends; for use with a Trainer of your own.

    Args:
        shift: name -> data module, set up, with its transforms.
        candidates: as in `shift_target`.

    Attributes:
        spaces: what was measured; None before the fit has ended.
    """

    prefix = SHIFT

    def __init__(self, shift: Mapping[str, Any], candidates: str = "named") -> None:
        super().__init__()
        self.shift, self.candidates = dict(shift), candidates

    def targets(self, adapter: Adapter) -> list[Target]:
        """The other images, with labels of the trained classes."""
        return [shift_target(name, data, adapter.classes, self.candidates) for name, data in self.shift.items()]


def _plain(text: str) -> str:
    return " ".join(text.replace("_", " ").split()).casefold()


def _some(names: Any, most: int = 5) -> str:
    names = list(names)
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
