"""Cross-dataset transfer: what was learned on one data set, asked about others by their own classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from ..adapter import Adapter
from ..classes import DEFAULT_TEMPLATES, ClassSet
from ..errors import NeedsImages
from ..module import AdaptationModule
from ..tasks.classification import evaluate
from .base_to_new import Spaces

OTHER = "other:"


@dataclass(frozen=True)
class Target:
    """Further test images with the classes they are asked about.

    Attributes:
        space: name in the results: "other:NAME" or "shift:NAME".
        data: a data module with `test_dataloader()` whose labels count in `classes`.
        classes: the candidates.
        note: what the reader should know of the classes; "" for nothing.
    """

    space: str
    data: Any
    classes: ClassSet
    note: str = ""


def other_target(name: str, data: Any, templates: Sequence[str] = DEFAULT_TEMPLATES) -> Target:
    """A data set asked about by its own class names.

    Args:
        name: what to call it.
        data: its data module, set up.
        templates: sentences for zero-shot weights.
    """
    texts = {key: tuple(value) for key, value in data.class_texts.items()}
    classes = ClassSet(names=tuple(data.class_names), texts=texts, templates=tuple(templates))
    return Target(f"{OTHER}{name}", data, classes)


def measure_targets(adapter: Adapter, targets: Iterable[Target]) -> Spaces:
    """Evaluate on the test images of every target; the adapter's own classes stay as they are.

    A target with classes that the method cannot answer about from their names is listed in `unanswered`.
    """
    found = Spaces()
    for target in targets:
        try:
            found.outcomes[target.space] = evaluate(adapter, target.data.test_dataloader(), target.classes)
        except NeedsImages as error:
            found.unanswered[target.space] = str(error)
    return found


class TargetCallback(Callback):
    """Measure targets when a fit ends and log their accuracies; `spaces` holds the answers."""

    prefix = ""

    def __init__(self) -> None:
        self.spaces: Spaces | None = None

    def targets(self, adapter: Adapter) -> list[Target]:
        """What is to be measured."""
        return []

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measure, and log accuracies under the names of the spaces and their mean."""
        assert isinstance(pl_module, AdaptationModule)
        self.spaces = measure_targets(pl_module.adapter, self.targets(pl_module.adapter))
        values = {space: float(result["accuracy"]) for space, result in self.spaces.results().items()}
        mean = self.spaces.mean(self.prefix)
        if mean is not None:
            values[f"{self.prefix}mean"] = mean
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)


class CrossDataset(TargetCallback):
    """Measure on other data sets when a fit ends; for use with a Trainer of your own.

    Args:
        others: name -> data module, set up, with its transforms.

    Attributes:
        spaces: what was measured; None before the fit has ended.
    """

    prefix = OTHER

    def __init__(self, others: Mapping[str, Any]) -> None:
        super().__init__()
        self.others = dict(others)

    def targets(self, adapter: Adapter) -> list[Target]:
        """The other data sets, in the words of the trained classes' templates."""
        return [other_target(name, data, adapter.classes.templates) for name, data in self.others.items()]
