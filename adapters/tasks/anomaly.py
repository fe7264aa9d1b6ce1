"""Anomaly detection: AUROC of images and of pixels, heat maps, and how they are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import LimpetError

if TYPE_CHECKING:
    from ..adapter import Adapter, Batch
    from ..backbone import FrozenClip
    from ..classes import ClassSet
    from ..session import Session

HEADLINE = "image_auroc"
FOLDER = "heatmaps"
_SHOWN = 60  # heat maps that a run writes
_PIXELS = 20_000_000  # of a class; of more, every second row and column is left out, and so on


@dataclass
class Outcome:
    """Scores of an adapter for one set of images.

    Attributes:
        classes: the objects.
        scores: (N,), the higher, the more anomalous.
        maps: N maps (rows, columns) of patches.
        anomalous: (N,), 0 or 1.
        defects: N masks (H, W), boolean.
        labels: (N,), objects, counted in `classes`.
        paths: N paths.
    """

    classes: ClassSet
    scores: list[float] = field(default_factory=list)
    maps: list[Tensor] = field(default_factory=list)
    anomalous: list[int] = field(default_factory=list)
    defects: list[Tensor] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._metrics: dict[str, Any] | None = None
        self.heat_maps: dict[str, str] = {}

    def rows(self, label: int) -> list[int]:
        """Positions of the images of an object."""
        return [i for i, own in enumerate(self.labels) if own == label]

    def per_class(self) -> list[tuple[str, int, float | None, float | None]]:
        """(object, images, image AUROC, pixel AUROC) in class order; None where there is only one kind."""
        found = []
        for label, name in enumerate(self.classes.names):
            rows = self.rows(label)
            image = auroc(np.array([self.scores[i] for i in rows]), np.array([self.anomalous[i] for i in rows]))
            found.append((name, len(rows), image, self._pixel_auroc(rows)))
        return found

    def _pixel_auroc(self, rows: list[int]) -> float | None:
        """AUROC over the pixels of some images, at the masks' resolution."""
        known = [i for i in rows if bool(self.defects[i].any()) or not self.anomalous[i]]
        if not known:
            return None
        step = 1
        while len(known) * self.defects[known[0]].numel() / step**2 > _PIXELS:
            step += 1
        truth = torch.stack([self.defects[i][::step, ::step] for i in known])
        size = self.defects[known[0]].shape
        found = torch.stack([enlarged(self.maps[i], size)[::step, ::step] for i in known])
        return auroc(found.flatten().numpy(), truth.flatten().numpy())

    def metrics(self) -> dict[str, Any]:
        """Means over objects of the areas under the ROC curves of images and of pixels."""
        if self._metrics is None:
            each = self.per_class()
            values = {"image_auroc": [one[2] for one in each], "pixel_auroc": [one[3] for one in each]}
            means = {key: _mean(numbers) for key, numbers in values.items()}
            counts = {"images": len(self.paths), "anomalous": sum(self.anomalous), "classes": len(self.classes)}
            self._metrics = {**{key: mean for key, mean in means.items() if mean is not None}, **counts}
        return self._metrics

    def predictions(self) -> list[dict[str, Any]]:
        """One row an image, most anomalous first."""
        order = sorted(range(len(self.paths)), key=lambda i: (-self.scores[i], self.paths[i]))
        return [
            {
                "rank": rank, "path": self.paths[i], "class": self.classes.names[self.labels[i]],
                "score": round(self.scores[i], 6), "anomalous": self.anomalous[i],
                "map_maximum": round(float(self.maps[i].max()), 6), "heat_map": self.heat_maps.get(self.paths[i], ""),
            }
            for rank, i in enumerate(order, start=1)
        ]  # fmt: skip


def auroc(scores: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> float | None:
    """Area under the ROC curve, ties counting half; None where all are of one kind."""
    from scipy.stats import rankdata

    wanted = truth.astype(bool)
    positive, negative = int(wanted.sum()), int((~wanted).sum())
    if not positive or not negative:
        return None
    ranks = rankdata(scores)
    return float((ranks[wanted].sum() - positive * (positive + 1) / 2) / (positive * negative))


def enlarged(patches: Tensor, size: Any) -> Tensor:
    """A map of patches (rows, columns) brought to (H, W) bilinearly."""
    return F.interpolate(patches[None, None].float(), size=tuple(size), mode="bilinear", align_corners=False)[0, 0]


@torch.no_grad()
def evaluate(adapter: Any, batches: Iterable[Batch], classes: ClassSet) -> Outcome:
    """Score every image of some batches.

    Raises:
        LimpetError: the images are not said to be normal or anomalous.
    """
    was_training = adapter.training
    adapter.eval()
    outcome = Outcome(classes)
    try:
        with adapter.answering(classes):
            for batch in batches:
                if "anomalous" not in batch:
                    raise LimpetError("The data do not say which images are anomalous: give a column anomaly or mask.")
                scores, maps = adapter.anomaly(batch)
                outcome.scores += scores.double().cpu().tolist()
                outcome.maps += list(maps.float().cpu())
                outcome.anomalous += [int(value) for value in batch["anomalous"]]
                outcome.defects += list(batch["defect"].cpu())
                outcome.labels += [int(value) for value in batch["label"]]
                outcome.paths += list(batch["path"])
    finally:
        adapter.train(was_training)
    return outcome


def reference(backbone: FrozenClip, classes: ClassSet) -> Adapter:
    """Plain patch tokens in place of value-value attention."""
    from ..methods.anomaly import Anomaly, Config

    return Anomaly(Config(stream="tokens")).setup(backbone, classes)


def write_pictures(run_dir: Path, spaces: Any, thumbnail: Callable[[str], Any]) -> None:
    """Write heat maps into the run's heatmaps/ and note their names in the outcome: at equal steps of the scores."""
    from ..heat_maps import write

    for outcome in spaces.outcomes.values():
        order = sorted(range(len(outcome.paths)), key=lambda i: (-outcome.scores[i], outcome.paths[i]))
        if not order:
            continue
        limits = (min(float(one.min()) for one in outcome.maps), max(float(one.max()) for one in outcome.maps))
        most = min(_SHOWN, len(order))
        for place in sorted({round(n * (len(order) - 1) / max(most - 1, 1)) for n in range(most)}):
            rank, i = place + 1, order[place]
            image = thumbnail(outcome.paths[i])
            if image is not None:
                name = f"{FOLDER}/{rank:04d}.png"
                write(run_dir / name, image, outcome.maps[i], limits, outcome.defects[i])
                outcome.heat_maps[outcome.paths[i]] = name


def class_rows(spaces: Any, zero_shot: Any) -> list[dict[str, Any]]:
    """Rows of per_class.csv."""
    rows = []
    for space, outcome in spaces.outcomes.items():
        before = {name: (image, pixel) for name, _, image, pixel in zero_shot.outcomes[space].per_class()}
        for name, images, image, pixel in outcome.per_class():
            row = {"space": space, "class": name, "text": outcome.classes.text(name), "images": images}
            tokens = {"tokens_image_auroc": before[name][0], "tokens_pixel_auroc": before[name][1]}
            rows.append({**row, "image_auroc": image, "pixel_auroc": pixel, **tokens})
    return rows


def lines(values: Mapping[str, Any]) -> str:
    """The headline of one space as a line."""
    return (
        f"image AUROC [bold]{number(values.get('image_auroc'))}[/bold], pixel AUROC {number(values.get('pixel_auroc'))}, "
        f"{values['images']} images, {values['anomalous']} of them anomalous, {values['classes']} objects"
    )


def number(value: Any) -> str:
    """Three decimals, or a dash."""
    return f"{value:.3f}" if isinstance(value, int | float) else "–"


def stream_rows(metrics: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """(where patch features come from, image and pixel AUROC)."""
    rows = []
    for space, values in metrics["results"].items():
        for who, numbers in ((metrics["method"], values), ("plain patch tokens", metrics["zero_shot"][space])):
            rows.append((who, [number(numbers.get(key)) for key in ("image_auroc", "pixel_auroc")]))
    return rows


def write_report(run_dir: Path, metrics: Mapping[str, Any], thumbnail: Callable[[str], Any]) -> None:
    """Write report.html."""
    from ..region_report import write_anomaly

    write_anomaly(run_dir, metrics, stream_rows(metrics))


def show_results(session: Session, metrics: Mapping[str, Any], run_dir: Path) -> None:
    """Print the table of a finished run, where it is, and what to do next."""
    from rich.markup import escape
    from rich.table import Table

    from ..show import console

    values = next(iter(metrics["results"].values()))
    about = f"{values['images']} test images, {values['anomalous']} anomalous"
    console.print(f"{metrics['recipe']}: {metrics['method']} on {metrics['backbone']}, AUROC, {about}", markup=False)
    table = Table()
    for column, side in (("patch features", "left"), ("image", "right"), ("pixel", "right")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for count, (name, cells) in enumerate(stream_rows(metrics)):
        table.add_row(escape(name), *(f"[bold]{cell}[/bold]" if count == 0 else cell for cell in cells))
    console.print(table)
    if values["classes"] > 1:
        console.print(f"means over {values['classes']} objects; each in per_class.csv")
    for note in metrics["notes"]:
        if note not in session.notes:
            console.print(f"[yellow]note[/yellow] {escape(note)}")
    console.print(f"run folder: [bold]{escape(str(run_dir))}[/bold], heat maps in its {FOLDER}/")
    console.print(f"next: limpet predict {escape(str(run_dir))} FOLDER_OF_IMAGES", soft_wrap=True)


def _mean(numbers: list[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if known else None
