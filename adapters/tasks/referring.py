"""Referring expressions: which of an image's boxes a caption means; what is measured, and how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..adapter import Adapter, Batch
    from ..backbone import FrozenClip
    from ..classes import ClassSet
    from ..session import Session

HEADLINE = "accuracy"
NAMES = {
    "foveal": "foveal", "foveal_subtract": "foveal, mean caption subtracted", "foveal_plain": "foveal, not subtracted",
    "crop": "crop", "crop_subtract": "crop, mean caption subtracted", "crop_plain": "crop, not subtracted",
    "blackout": "blackout", "blackout_subtract": "blackout, mean caption subtracted",
    "blackout_plain": "blackout, not subtracted", "no_mask": "no mask",
}  # fmt: skip


@dataclass
class Expression:
    """One caption about one image: its boxes (K, 4) as shares, which are right (K,), and scores (K,) by way."""

    path: str
    caption: str
    label: int
    boxes: Tensor
    target: Tensor
    scores: dict[str, Tensor]

    def right(self, way: str) -> float:
        """Share of the best boxes that are right: 1 or 0, and in between where several are equally good."""
        scores = self.scores[way]
        return float(self.target[scores == scores.max()].float().mean())


@dataclass
class Outcome:
    """Answers about a set of captions.

    Attributes:
        classes: the categories of the captions.
        ways: how boxes were shown; the first is the method's own.
        found: one entry a caption.
        without: captions whose image has no box, or none that is right.
    """

    classes: ClassSet
    ways: list[str]
    found: list[Expression] = field(default_factory=list)
    without: int = 0

    def share(self, way: str, found: Sequence[Expression] | None = None) -> float:
        """Share of captions whose box was found."""
        found = self.found if found is None else found
        return sum(one.right(way) for one in found) / len(found) if found else 0.0

    def metrics(self) -> dict[str, Any]:
        """Shares of captions whose box was found, in [0, 1]: the method's own, and side by side."""
        chance = sum(float(one.target.float().mean()) for one in self.found) / max(len(self.found), 1)
        return {
            "accuracy": self.share(self.ways[0]),
            "ways": {way: self.share(way) for way in self.ways},
            "chance": chance,
            "images": len(self.found),
            "boxes": sum(len(one.boxes) for one in self.found) / max(len(self.found), 1),
            "without_box": self.without,
            "classes": len(self.classes),
        }

    def per_class(self) -> list[tuple[str, int, float | None]]:
        """(category, captions, share found) in class order; None where a category has no caption."""
        rows = []
        for label, name in enumerate(self.classes.names):
            own = [one for one in self.found if one.label == label]
            rows.append((name, len(own), self.share(self.ways[0], own) if own else None))
        return rows

    def predictions(self) -> list[dict[str, Any]]:
        """One row a caption: the chosen box as shares of the image, its probability, and whether it is right."""
        rows = []
        for one in self.found:
            scores = one.scores[self.ways[0]]
            chosen = int(scores.argmax())
            row: dict[str, Any] = {
                "path": one.path, "caption": one.caption, "class": self.classes.names[one.label], "boxes": len(one.boxes),
                "chosen": chosen,
            }  # fmt: skip
            row |= {key: round(float(x), 4) for key, x in zip(("x0", "y0", "x1", "y1"), one.boxes[chosen], strict=True)}
            row["probability"] = round(float(scores.double().softmax(0)[chosen]), 6)
            row["ties"] = int((scores == scores.max()).sum()) - 1
            row["correct"] = round(one.right(self.ways[0]), 4)
            rows.append(row)
        return rows


@torch.no_grad()
def evaluate(adapter: Any, batches: Iterable[Batch], classes: ClassSet) -> Outcome:
    """Choose a box for every caption, in every way that is compared."""
    was_training = adapter.training
    adapter.eval()
    outcome = Outcome(classes, list(adapter.ways))
    try:
        with adapter.answering(classes):
            for batch in batches:
                _answer(adapter, batch, outcome)
    finally:
        adapter.train(was_training)
    return outcome


def _answer(adapter: Any, batch: Batch, outcome: Outcome) -> None:
    captions = adapter.captions(batch)
    asked = [i for i, caption in enumerate(captions) if caption and bool(batch["target"][i].any())]
    outcome.without += sum(bool(caption) for caption in captions) - len(asked)
    if not asked:
        return
    part: dict[str, Any] = {}
    for key, values in batch.items():
        part[key] = values[asked] if isinstance(values, Tensor) else [values[i] for i in asked]
    captions = [captions[i] for i in asked]
    features = {shown: adapter.box_features(part, shown) for shown in {shown for shown, _ in adapter.ways.values()}}
    scores = {
        way: [one.float().cpu() for one in adapter.box_scores(features[shown], captions, subtract)]
        for way, (shown, subtract) in adapter.ways.items()
    }
    for i, caption in enumerate(captions):
        one = {way: values[i] for way, values in scores.items()}
        boxes, target = part["candidates"][i].cpu(), part["target"][i].cpu()
        outcome.found.append(Expression(part["path"][i], caption, int(part["label"][i]), boxes, target, one))


def reference(backbone: FrozenClip, classes: ClassSet) -> Adapter:
    """The choice without looking at the boxes."""
    from ..methods.falip_refer import Config, FalipRefer

    return FalipRefer(Config(region="none")).setup(backbone, classes)


def class_rows(spaces: Any, zero_shot: Any) -> list[dict[str, Any]]:
    """Rows of per_class.csv."""
    rows = []
    for space, outcome in spaces.outcomes.items():
        before = {name: share for name, _, share in zero_shot.outcomes[space].per_class()}
        for name, count, share in outcome.per_class():
            row = {"space": space, "class": name, "text": outcome.classes.text(name), "images": count, "accuracy": share}
            rows.append({**row, "zero_shot_accuracy": before[name]})
    return rows


def lines(values: Mapping[str, Any]) -> str:
    """The headline of one space as a line."""
    from ..show import percent

    return (
        f"right box [bold]{percent(values['accuracy'])} %[/bold], by chance {percent(values['chance'])} %, "
        f"{values['images']} captions, {values['boxes']:.1f} boxes an image"
    )


def way_rows(metrics: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """(way, per cent right in each space) in the order they are compared, chance last."""
    from ..show import percent

    results = metrics["results"]
    ways = list(next(iter(results.values()))["ways"])
    rows = [(NAMES[way], [percent(values["ways"][way]) for values in results.values()]) for way in ways]
    return [*rows, ("by chance", [percent(values["chance"]) for values in results.values()])]


def write_report(run_dir: Path, metrics: Mapping[str, Any], thumbnail: Callable[[str], Any]) -> None:
    """Write report.html."""
    from ..region_report import write_referring

    write_referring(run_dir, metrics, way_rows(metrics), thumbnail)


def show_results(session: Session, metrics: Mapping[str, Any], run_dir: Path) -> None:
    """Print the table of a finished run, where it is, and what to do next."""
    from rich.markup import escape
    from rich.table import Table

    from ..show import TITLES, console

    title = f"{metrics['recipe']}: {metrics['method']} on {metrics['backbone']}, right box, % of test captions"
    console.print(title, markup=False)
    table = Table()
    table.add_column("how a box is shown", no_wrap=True)
    for space, values in metrics["results"].items():
        table.add_column(f"{escape(TITLES.get(space, space))} ({values['images']})", justify="right")
    for number, (name, cells) in enumerate(way_rows(metrics)):
        table.add_row(name, *([f"[bold]{cell}[/bold]" for cell in cells] if number == 0 else cells))
    console.print(table)
    if metrics.get("harmonic_mean") is not None:
        from ..show import percent

        console.print(f"harmonic mean of base and new: [bold]{percent(metrics['harmonic_mean'])} %[/bold]")
    for note in metrics["notes"]:
        if note not in session.notes:
            console.print(f"[yellow]note[/yellow] {escape(note)}")
    console.print(f"run folder: [bold]{escape(str(run_dir))}[/bold]")
    console.print(f"next: limpet predict {escape(str(run_dir))} BOXES.csv   (path, caption, x0, y0, x1, y1)", soft_wrap=True)
