"""Classification: its loss, what is measured, and the columns of its predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..adapter import Adapter
from ..answers import Answers, answers
from ..calibration import Calibration, calibrate
from ..metrics import expected_error, measured, per_class

if TYPE_CHECKING:
    from ..adapter import Batch
    from ..backbone import FrozenClip
    from ..classes import ClassSet
    from ..session import Session

HEADLINE = "accuracy"


@dataclass
class Outcome:
    """Answers of an adapter about one set of images in one label space.

    Attributes:
        classes: the label space.
        parts: logits (n, C), float32, on the CPU, batch by batch; together of N images.
        labels: (N,), counted in `classes`.
        paths: N paths.
        temperature: fitted on the validation images; None where there were none.
    """

    classes: ClassSet
    parts: list[Tensor]
    labels: Tensor
    paths: list[str]
    temperature: float | None = None

    @property
    def logits(self) -> Tensor:
        """All of them, (N, C): a copy."""
        return torch.cat(self.parts)

    @cached_property
    def answers(self) -> Answers:
        """What they say in short."""
        return answers(self.parts, self.labels)

    def metrics(self) -> dict[str, Any]:
        """Headline numbers, each in [0, 1]."""
        return measured(self.answers, self.labels)

    def per_class(self) -> list[tuple[str, int, float | None]]:
        """(class, images, accuracy) in class order; None where a class has no image."""
        found = per_class(self.answers.predicted, self.labels, len(self.classes))
        return [(name, one.images, one.accuracy) for name, one in zip(self.classes.names, found, strict=True)]

    def predictions(self) -> list[dict[str, Any]]:
        """One row an image: path, label, predicted, probability of the prediction plain and calibrated, correct (0 or 1)."""
        names = self.classes.names
        scaled: list[Any] = [None] * len(self.paths)
        if self.temperature is not None:
            scaled = [round(q, 6) for q in answers(self.parts, self.labels, self.temperature).confidence.tolist()]
        columns = (self.labels.tolist(), self.answers.predicted.tolist(), self.answers.confidence.tolist())
        rows = zip(self.paths, *columns, scaled, strict=True)
        return [
            {"path": p, "label": names[y], "predicted": names[k], "probability": round(q, 6), "calibrated": c, "correct": int(y == k)}
            for p, y, k, q, c in rows
        ]


@torch.no_grad()
def evaluate(adapter: Adapter, batches: Iterable[Batch], classes: ClassSet) -> Outcome:
    """Ask `adapter` about every batch, with `classes` as candidates.

    Args:
        adapter: any adapter after training.
        batches: of images or features, or of what `encoded` made of them.
        classes: the candidates; labels count in them.

    Raises:
        NeedsImages: the method cannot answer about some of the classes.
    """
    was_training = adapter.training
    adapter.eval()
    device = adapter.backbone.device
    parts, labels, paths = [], [], []
    try:
        with adapter.answering(classes):
            for batch in batches:
                moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
                logits = adapter.logits_of(moved["encoded"]) if "encoded" in moved else adapter.logits(moved)
                parts.append(logits.float().cpu())
                labels.append(batch["label"].cpu())
                paths.extend(batch["path"])
    finally:
        adapter.train(was_training)
    if not parts:
        return Outcome(classes, [torch.zeros(0, len(classes))], torch.zeros(0, dtype=torch.long), [])
    return Outcome(classes, parts, torch.cat(labels), paths)


def calibrated(adapter: Adapter, batches: Iterable[Batch], spaces: Any) -> dict[str, Any]:
    """Fit a temperature and thresholds on validation batches and give the temperature to the answers of `spaces`.

    Returns:
        `calibration`: what the artefact stores. `metrics`: temperature, number of validation images, and the calibration
        error of each label space with it. Empty without validation images.
    """
    held_out = evaluate(adapter, batches, adapter.classes)
    found = calibrate(held_out.parts, held_out.labels)
    return {} if found is None else {"calibration": found.to_dict(), "metrics": tempered(found, spaces)}


def tempered(found: Calibration, spaces: Any) -> dict[str, Any]:
    """Give a fitted temperature to the answers of `spaces`.

    Returns:
        What metrics.json says of it: temperature, number of validation images, calibration error of each label space.
    """
    errors = {}
    for space, outcome in spaces.outcomes.items():
        outcome.temperature = found.temperature
        errors[space] = expected_error(answers(outcome.parts, outcome.labels, found.temperature), outcome.labels)
    return {"temperature": found.temperature, "images": found.images, "ece": errors}


def encodes_apart(adapter: Adapter) -> bool:
    """Whether images go through a tower whose output can be compared with any candidates afterwards."""
    needs = adapter.needs(adapter.config, adapter.backbone.spec)
    return needs == "images" and type(adapter).logits is Adapter.logits


@torch.no_grad()
def encoded(adapter: Adapter, batches: Iterable[Batch]) -> list[Batch]:
    """Batches with image features, `encoded` (B, D) on the CPU, in place of images; each image is encoded once."""
    was_training = adapter.training
    adapter.eval()
    device = adapter.backbone.device
    found: list[Batch] = []
    try:
        for batch in batches:
            moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            rest = {k: v for k, v in batch.items() if k != "image"}
            found.append({**rest, "encoded": adapter.encode_image(moved).cpu()})
    finally:
        adapter.train(was_training)
    return found


def among(batches: Iterable[Batch], names: Sequence[str], classes: ClassSet) -> list[Batch]:
    """The images of `classes` in batches whose labels count in `names`, with labels that count in `classes`."""
    number = {name: i for i, name in enumerate(classes.names)}
    new_labels = torch.tensor([number.get(name, -1) for name in names])
    found: list[Batch] = []
    for batch in batches:
        labels = new_labels[batch["label"].cpu()]
        rows = (labels >= 0).nonzero().squeeze(1)
        if len(rows):
            paths = [batch["path"][i] for i in rows.tolist()]
            found.append({"encoded": batch["encoded"][rows], "label": labels[rows], "path": paths})
    return found


def reference(backbone: FrozenClip, classes: ClassSet) -> Adapter:
    """Zero-shot CLIP."""
    from ..methods.zero_shot import Config, ZeroShot

    return ZeroShot(Config()).setup(backbone, classes)


def class_rows(spaces: Any, zero_shot: Any) -> list[dict[str, Any]]:
    """Rows of per_class.csv."""
    rows = []
    for space, outcome in spaces.outcomes.items():
        reference = {name: accuracy for name, _, accuracy in zero_shot.outcomes[space].per_class()}
        for name, images, accuracy in outcome.per_class():
            rows.append(
                {
                    "space": space,
                    "class": name,
                    "text": outcome.classes.text(name),
                    "images": images,
                    "accuracy": accuracy,
                    "zero_shot_accuracy": reference[name],
                }
            )
    return rows


def lines(values: Mapping[str, Any]) -> str:
    """The headline of one label space as a line."""
    from ..show import percent

    return (
        f"accuracy [bold]{percent(values['accuracy'])} %[/bold], balanced {percent(values['balanced_accuracy'])} %, "
        f"macro-F1 {percent(values['macro_f1'])} %, {values['images']} images, {values['classes']} classes"
    )


def write_report(run_dir: Path, metrics: Mapping[str, Any], thumbnail: Callable[[str], Any]) -> None:
    """Write report.html."""
    from ..report import write_report as write

    write(run_dir, metrics, thumbnail)


def show_results(session: Session, metrics: Mapping[str, Any], run_dir: Path) -> None:
    """Print the table of a finished run, where it is, and what to do next."""
    from ..show import results

    results(session, metrics, run_dir)
