"""Base-to-new generalisation: accuracy on trained classes, on new ones, and on all together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from ..adapter import Adapter
from ..classes import ClassSet
from ..errors import NeedsImages
from ..metrics import harmonic_mean
from ..module import AdaptationModule
from ..tasks import task_of


@dataclass
class Spaces:
    """Answers in several label spaces.

    Attributes:
        outcomes: label space ("all", or "base", "new", "joint"; "other:NAME", "shift:NAME") -> answers.
        unanswered: label space -> why the method cannot answer there.
    """

    outcomes: dict[str, Any] = field(default_factory=dict)
    unanswered: dict[str, str] = field(default_factory=dict)

    def results(self) -> dict[str, dict[str, Any]]:
        """Metrics of each label space."""
        return {space: outcome.metrics() for space, outcome in self.outcomes.items()}

    def add(self, more: Spaces) -> None:
        """Take over the answers of further label spaces."""
        self.outcomes.update(more.outcomes)
        self.unanswered.update(more.unanswered)

    def mean(self, prefix: str) -> float | None:
        """Mean accuracy over the label spaces that begin with `prefix`; None without any, or where one is unanswered."""
        accuracies = [o.metrics()["accuracy"] for space, o in self.outcomes.items() if space.startswith(prefix)]
        missing = any(space.startswith(prefix) for space in self.unanswered)
        return sum(accuracies) / len(accuracies) if accuracies and not missing else None

    def harmonic_mean(self) -> float | None:
        """Harmonic mean of base and new accuracy; None where either is missing."""
        if not {"base", "new"} <= self.outcomes.keys():
            return None
        base, new = (self.outcomes[s].metrics().get("accuracy") for s in ("base", "new"))
        if base is None or new is None:  # a task whose figures can be negative has no such mean
            return None
        return harmonic_mean(base, new)


def measure(adapter: Adapter, data: Any, spaces: Mapping[str, ClassSet]) -> Spaces:
    """Evaluate on the test images of each label space; only its own classes are candidates there.

    An image of several label spaces passes the image tower once, where the method lets images be encoded by themselves.

    Args:
        adapter: any adapter after training.
        data: a data module with `restrict(names)` and `test_dataloader()`.
        spaces: label space -> its classes.
    """
    found, task = Spaces(), task_of(adapter)
    once: list[Any] = []
    names = list(dict.fromkeys(name for classes in spaces.values() for name in classes.names))
    apart = len(spaces) > 1 and adapter.task == "classification" and task.encodes_apart(adapter)
    if apart:
        once = task.encoded(adapter, data.restrict(names).test_dataloader())
    for space, classes in spaces.items():
        try:
            batches = task.among(once, names, classes) if apart else data.restrict(classes.names).test_dataloader()
            found.outcomes[space] = task.evaluate(adapter, batches, classes)
        except NeedsImages as error:
            found.unanswered[space] = str(error)
    return found


def label_spaces(classes: ClassSet, protocol: str) -> dict[str, ClassSet]:
    """Label spaces of a protocol: "base_to_new" -> base, new, and joint (all); others -> all classes."""
    if protocol == "base_to_new":
        return {"base": classes.base(), "new": classes.new(), "joint": classes}
    return {"all": classes}


class BaseToNew(Callback):
    """Measure base, new and joint accuracy when a fit ends; for use with a Trainer of your own.

    Args:
        data: data module over all classes.
        classes: all classes, base and new.

    Attributes:
        spaces: what was measured; None before the fit has ended.
    """

    def __init__(self, data: Any, classes: ClassSet) -> None:
        self.data, self.classes = data, classes
        self.spaces: Spaces | None = None

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measure, and log accuracies under base, new, joint and harmonic_mean."""
        assert isinstance(pl_module, AdaptationModule)
        self.spaces = measure(pl_module.adapter, self.data, label_spaces(self.classes, "base_to_new"))
        values: dict[str, float] = {s: float(r["accuracy"]) for s, r in self.spaces.results().items()}
        mean = self.spaces.harmonic_mean()
        if mean is not None:
            values["harmonic_mean"] = mean
        loggers: Sequence[Any] = trainer.loggers
        for logger in loggers:
            logger.log_metrics(values, step=trainer.global_step)
