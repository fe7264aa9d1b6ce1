"""Classification: its loss, what is measured, and the columns of its predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..adapter import Adapter
from ..calibration import Calibration, calibrate
from ..metrics import calibration_error, classification_metrics, per_class_accuracy, probabilities

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
        logits: (N, C), float32, on the CPU.
        labels: (N,), counted in `classes`.
        paths: N paths.
        temperature: fitted on the validation images; None where there were none.
    """

    classes: ClassSet
    logits: Tensor
    labels: Tensor
    paths: list[str]
    temperature: float | None = None

    def metrics(self) -> dict[str, Any]:
        """Headline numbers, each in [0, 1]."""
        return classification_metrics(self.logits, self.labels)

    def per_class(self) -> list[tuple[str, int, float | None]]:
        """(class, images, accuracy) in class order; None where a class has no image."""
        counts, accuracy = per_class_accuracy(self.logits, self.labels)
        rows = zip(self.classes.names, counts, accuracy, strict=True)
        return [(name, int(n), a if n else None) for name, n, a in rows]

    def predictions(self) -> list[dict[str, Any]]:
        """One row an image: path, label, predicted, probability of the prediction plain and calibrated, correct (0 or 1)."""
        probability, predicted = probabilities(self.logits).max(-1)
        names = self.classes.names
        scaled: list[Any] = [None] * len(self.paths)
        if self.temperature is not None:
            scaled = [round(q, 6) for q in probabilities(self.logits / self.temperature).max(-1).values.tolist()]
        rows = zip(self.paths, self.labels.tolist(), predicted.tolist(), probability.tolist(), scaled, strict=True)
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
    logits, labels, paths = [], [], []
    try:
        with adapter.answering(classes):
            for batch in batches:
                moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
                answers = adapter.logits_of(moved["encoded"]) if "encoded" in moved else adapter.logits(moved)
                logits.append(answers.float().cpu())
                labels.append(batch["label"].cpu())
                paths.extend(batch["path"])
    finally:
        adapter.train(was_training)
    if not logits:
        return Outcome(classes, torch.zeros(0, len(classes)), torch.zeros(0, dtype=torch.long), [])
    return Outcome(classes, torch.cat(logits), torch.cat(labels), paths)


def calibrated(adapter: Adapter, batches: Iterable[Batch], spaces: Any) -> dict[str, Any]:
    """Fit a temperature and thresholds on validation batches and give the temperature to the answers of `spaces`.

    Returns:
        `calibration`: what the artefact stores. `metrics`: temperature, number of validation images, and the calibration
        error of each label space with it. Empty without validation images.
    """
    held_out = evaluate(adapter, batches, adapter.classes)
    found = calibrate(held_out.logits, held_out.labels)
    return {} if found is None else {"calibration": found.to_dict(), "metrics": tempered(found, spaces)}


def tempered(found: Calibration, spaces: Any) -> dict[str, Any]:
    """Give a fitted temperature to the answers of `spaces`.

    Returns:
        What metrics.json says of it: temperature, number of validation images, calibration error of each label space.
    """
    errors = {}
    for space, outcome in spaces.outcomes.items():
        outcome.temperature = found.temperature
        errors[space] = calibration_error(probabilities(outcome.logits / found.temperature), outcome.labels)
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
