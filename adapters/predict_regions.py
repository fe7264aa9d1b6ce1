"""`limpet predict RUN BOXES.csv`: answers about regions that a table lists, and heat maps of anomalous images."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import files
from .csv_files import cell
from .errors import LimpetError
from .inference import finite, load_adapter

if TYPE_CHECKING:
    from rich.console import Console

TABLES = (".csv", ".tsv", ".parquet", ".pq")
_SHOWN, _MAPS = 10, 200


def command(
    folder: Path, path: Any, out: Path | None, top: int, console: Console, fresh: Callable[[Path, str], Path]
) -> int | None:
    """Answer where a run is about regions, or a table of regions is given; None where neither is the case.

    Raises:
        LimpetError: the run cannot answer about what is given.
    """
    from .predict import find_images, task_of_artefact

    task = task_of_artefact(folder)
    paths = [str(path)] if isinstance(path, str | Path) else [str(one) for one in path]
    given = Path(paths[0]).expanduser()
    table = len(paths) == 1 and given.suffix.lower() in TABLES and given.is_file()
    if out is not None and out.suffix.lower() != ".csv" and (table or task in ("referring", "anomaly")):
        raise LimpetError(f"Answers about regions are written as CSV; --out is {out}.")
    if table and task in ("classification", "referring"):
        return regions_command(folder, given, out or fresh(folder, "regions"), top, console)
    if task == "referring":
        raise LimpetError(f"This run chooses among boxes: give a CSV with path, caption, x0, y0, x1, y1 in place of {paths[0]}.")
    if task == "anomaly":
        images = list(dict.fromkeys(image for one in paths for image in find_images(one)))
        return anomaly_command(folder, images, out or fresh(folder, "anomalies"), console)
    return None


class Rows:
    """The rows of a table of regions: columns path and x0, y0, x1, y1 or mask, and for expressions caption.

    Paths start from the table's folder (or are absolute).
    """

    def __init__(self, table: Path) -> None:
        modules = {name: importlib.import_module(f".datamodules.{name}", __package__) for name in ("table", "configs")}
        regions = importlib.import_module(".datamodules.table_regions", __package__)
        frame = modules["table"].read_table(table)
        if "path" not in frame.columns:
            raise LimpetError(f"{table} has no column 'path'; its columns are {', '.join(map(str, frame.columns))}.")
        self.table, self.frame = table, frame
        self.rows = [i for i, path in enumerate(frame["path"]) if path.strip()]
        paths, self.files, _ = modules["table"].locate([frame["path"].iloc[i] for i in self.rows], table.parent, table)
        config = modules["configs"].TableConfig(anomaly_column=None)
        self.regions = regions.TableRegions(frame, self.rows, paths, table, table.parent, config)
        if not self.regions.boxed and not self.regions.masked:
            columns = ", ".join(map(str, frame.columns))
            raise LimpetError(
                f"{table} has no regions: it needs the columns x0, y0, x1, y1 or mask beside path; its columns are {columns}. "
                "For whole images, give a folder."
            )

    def images(self) -> dict[str, list[int]]:
        """Places of the rows of each image, in order; rows whose image is missing are left out."""
        found: dict[str, list[int]] = {}
        for place, file in enumerate(self.files):
            if file is not None:
                found.setdefault(file, []).append(place)
        return found

    def given(self, place: int) -> dict[str, str]:
        """The cells of a row that say what it is about."""
        columns = [c for c in ("path", "x0", "y0", "x1", "y1", "mask", "caption") if c in self.frame.columns]
        return {column: cell(str(self.frame[column].iloc[self.rows[place]])) for column in columns}


def regions_command(folder: Path, table: Path, out: Path, top: int, console: Console) -> int:
    """Answer about every region of a table, write a CSV file and print its first rows.

    Returns:
        0, or 1 where images could not be read (they are listed, and in the CSV with empty answers).

    Raises:
        LimpetError: the adapter looks at no regions, or the table has none.
    """
    adapter: Any = load_adapter(folder, None, None, None, True).eval()
    if not hasattr(adapter, "region_features"):
        raise LimpetError(f"'{adapter.name}' looks at whole images: give a folder or images in place of {table}.")
    rows = Rows(table)
    refers = adapter.task == "referring"
    if refers and not rows.regions.captions:
        raise LimpetError(f"{table} has no column 'caption': '{adapter.name}' chooses the box that a caption means.")
    if refers and not rows.regions.boxed:
        raise LimpetError(f"{table} has no boxes to choose from: it needs the columns x0, y0, x1, y1.")
    images = importlib.import_module(".datamodules.images", __package__)
    answers: dict[int, dict[str, Any]] = {}
    broken = [(rows.frame["path"].iloc[rows.rows[n]], "there is no such file") for n, f in enumerate(rows.files) if f is None]
    transform = adapter.backbone.transform(resize_mode="squash")
    for file, places in rows.images().items():
        try:
            image = images.read_image(file)
        except images.UnreadableImage as error:
            broken.append((file, error.reason))
            continue
        answer = _referred if refers else _classified
        answers |= answer(adapter, rows, places, image, transform, top)
    keys = list(dict.fromkeys(key for row in answers.values() for key in row))
    asked = [n for n in range(len(rows.rows)) if not refers or rows.regions.captions[n].strip()]
    written = [{**rows.given(n), **answers.get(n, {})} for n in asked]
    columns = list(dict.fromkeys([*(key for row in written for key in row if key not in keys), *keys]))
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_csv(out, written, columns)
    _show(console, [row for n, row in zip(asked, written, strict=True) if n in answers], refers)
    console.print(f"{len(answers)} {'captions' if refers else 'regions'} of {len(rows.images())} images", highlight=False)
    console.print(f"Predictions: {out}", highlight=False, markup=False, soft_wrap=True)
    for name, why in broken[:50]:
        console.print(f"  not read: {name}: {why}", highlight=False, markup=False, soft_wrap=True)
    return 1 if broken else 0


def _item(rows: Rows, places: Sequence[int], image: Any, transform: Any, keys: Sequence[str]) -> dict[str, Any]:
    """A batch of one image with the regions of some of its rows, one region a row."""
    listing = importlib.import_module(".datamodules.listing", __package__)
    regions = importlib.import_module(".datamodules.regions", __package__)
    boxes = tuple(rows.regions.boxes[n] for n in places if rows.regions.boxes[n] is not None)
    masks = tuple(rows.regions.masks[n] for n in places if rows.regions.boxes[n] is None and rows.regions.masks[n] is not None)
    extra = {"boxes": boxes, "candidates": boxes, "masks": masks, "relative": rows.regions.relative}
    path = str(rows.frame["path"].iloc[rows.rows[places[0]]])
    found = regions.Regions(listing.Sample(path, 0, file=Path(path), extra=extra), image, transform)
    return {"path": [path], "image": transform(image)[None], **{key: [found(key)] for key in keys}}


@torch.inference_mode()
def _classified(adapter: Any, rows: Rows, places: Sequence[int], image: Any, transform: Any, top: int) -> dict[int, dict[str, Any]]:
    """Classes of the regions of one image."""
    boxed = [n for n in places if rows.regions.boxes[n] is not None]
    masked = [n for n in places if rows.regions.boxes[n] is None and rows.regions.masks[n] is not None]
    plain = [n for n in places if n not in boxed and n not in masked]
    keys = ("boxes", "masks", *(("crops",) if adapter.config.region == "crop" else ()))
    batch = _item(rows, places, image, transform, keys)
    answers: dict[int, dict[str, Any]] = {}
    answered = adapter.logits_of_regions(batch) if boxed or masked else torch.zeros(0, len(adapter.classes))
    if plain:
        answered = torch.cat([answered, adapter.logits({"image": batch["image"]}).to(answered).expand(len(plain), -1)])
    for n, logits in zip((*boxed, *masked, *plain), answered, strict=True):
        values, chosen = finite(logits.double().cpu()).softmax(-1).topk(min(top, len(adapter.classes)))
        names = [adapter.classes.names[int(k)] for k in chosen]
        row: dict[str, Any] = {"label": cell(names[0]), "text": cell(adapter.classes.text(names[0]))}
        row["probability"] = f"{float(values[0]):.6f}"
        for rank in range(2, len(names) + 1):
            row |= {f"top{rank}": cell(names[rank - 1]), f"probability{rank}": f"{float(values[rank - 1]):.6f}"}
        answers[n] = row
    return answers


@torch.inference_mode()
def _referred(adapter: Any, rows: Rows, places: Sequence[int], image: Any, transform: Any, top: int) -> dict[int, dict[str, Any]]:
    """For each caption of one image the box it means, among all boxes of its rows."""
    boxed = [n for n in places if rows.regions.boxes[n] is not None]
    first = list({rows.regions.boxes[n]: n for n in reversed(boxed)}.values())[::-1]  # each box once
    asked = [n for n in places if rows.regions.captions[n].strip()]
    if not first or not asked:
        return {}
    batch = _item(rows, first, image, transform, ("candidates", "candidate_crops"))
    features = adapter.box_features(batch)[0]
    captions = [rows.regions.captions[n] for n in asked]
    scores = adapter.box_scores([features] * len(asked), captions)
    answers: dict[int, dict[str, Any]] = {}
    for n, one in zip(asked, scores, strict=True):
        best = int(finite(one.double().cpu()).argmax())
        found = dict(zip(("found_x0", "found_y0", "found_x1", "found_y1"), rows.regions.boxes[first[best]], strict=True))
        found = {key: f"{value:g}" for key, value in found.items()}
        answers[n] = {**found, "probability": f"{float(one.double().softmax(0)[best]):.6f}"}
    return answers


def _show(console: Console, rows: Sequence[dict[str, Any]], refers: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"Predictions (the first {_SHOWN} of {len(rows)})" if len(rows) > _SHOWN else "Predictions")
    for column in ("image", "caption" if refers else "region", "box" if refers else "label"):
        table.add_column(column, overflow="fold")
    table.add_column("probability", justify="right")
    for row in rows[:_SHOWN]:
        box = [row[key] for key in ("x0", "y0", "x1", "y1") if row.get(key)]
        given = ", ".join(f"{float(value):.4g}" for value in box) or row.get("mask") or "whole image"
        found = ", ".join(row[key] for key in ("found_x0", "found_y0", "found_x1", "found_y1") if key in row)
        about = (row.get("caption", ""), found) if refers else (given, row["label"])
        table.add_row(*(Text(str(text)) for text in (Path(row["path"]).name, *about, f"{float(row['probability']):.3f}")))
    console.print(table)


def anomaly_command(folder: Path, images: Sequence[str], out: Path, console: Console) -> int:
    """Score images, write a CSV file with the most anomalous first and heat maps in a folder beside it.

    Returns:
        0, or 1 where images could not be read.
    """
    from rich.table import Table
    from rich.text import Text

    from . import heat_maps
    from .progress import Progress

    adapter: Any = load_adapter(folder, None, None, None, True).eval()
    reader = importlib.import_module(".datamodules.images", __package__)
    transform = adapter.backbone.transform(resize_mode=adapter.resize_mode)
    found: list[tuple[float, str, Any]] = []
    broken: list[tuple[str, str]] = []
    with torch.inference_mode(), Progress("Scoring", len(images)) as progress:
        for path in images:
            progress.advance(1)
            try:
                image = reader.read_image(path)
            except reader.UnreadableImage as error:
                broken.append((path, error.reason))
                continue
            score, maps = adapter.anomaly({"image": transform(image)[None]})
            found.append((float(finite(score.cpu())), path, finite(maps[0].float().cpu())))
    found.sort(key=lambda one: (-one[0], one[1]))
    beside = out.with_suffix("")
    limits = (min((float(m.min()) for *_, m in found), default=0.0), max((float(m.max()) for *_, m in found), default=1.0))
    rows: list[dict[str, Any]] = []
    for rank, (score, path, maps) in enumerate(found, start=1):
        name = ""
        if rank <= _MAPS:
            name = f"{beside.name}/{rank:04d}.png"
            heat_maps.write(beside / f"{rank:04d}.png", reader.read_image(path), maps, limits)
        rows.append({"rank": rank, "path": cell(path), "score": f"{score:.6f}", "heat_map": name})
    rows += [{"path": cell(path)} for path, _ in broken]
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_csv(out, rows, ["rank", "path", "score", "heat_map"])
    table = Table(title="Most anomalous first")
    for column in ("rank", "image", "score"):
        table.add_column(column, overflow="fold")
    for rank, (score, path, _) in enumerate(found[:_SHOWN], start=1):
        table.add_row(str(rank), Text(Path(path).name), f"{score:.4f}")
    console.print(table)
    console.print(f"Scores: {out}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"Heat maps: {beside}", highlight=False, markup=False, soft_wrap=True)
    for name, why in broken[:50]:
        console.print(f"  not read: {name}: {why}", highlight=False, markup=False, soft_wrap=True)
    return 1 if broken else 0
