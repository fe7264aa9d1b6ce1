"""The dry run of a grid: its cells, which data are there, and how long it will take, from one batch of each method."""

from __future__ import annotations

import dataclasses
import importlib
import json
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from . import runner, session
from .grid import cell_name, grid_dir
from .show import console

if TYPE_CHECKING:
    from .adapter import Batch
    from .recipe import Recipe

_BATCH = 32  # images in the measurement


@dataclasses.dataclass(frozen=True)
class Source:
    """One data set of a grid: its title, sizes, and the sentence where it cannot be used ("" where it can)."""

    title: str
    classes: int = 0
    pool: int = 0
    test: int = 0
    missing: str = ""


@dataclasses.dataclass(frozen=True)
class Speed:
    """Seconds measured with one batch: encoding an image, a training step, answering about an image.

    `classes` is the number of classes trained on in the measurement; steps take longer with more.
    """

    encode: float
    step: float
    answer: float
    classes: int
    needs: str
    trains: bool


def show_plan(recipes: Sequence[Recipe]) -> None:
    """Print the plan of a grid; nothing is trained and nothing written but features that would be computed anyway."""
    folder = grid_dir(recipes)
    done = sum((folder / cell_name(r) / "metrics.json").exists() for r in recipes)
    varied = {key: list(dict.fromkeys(str(r.cell[key]) for r in recipes)) for key in recipes[0].cell}
    console.print(f"[bold]{escape(recipes[0].name)}[/bold]: {len(recipes)} cells, {done} of them finished, in {escape(str(folder))}")
    for key, values in varied.items():
        console.print(f"  {key}: {', '.join(values)}  ({len(values)})", markup=False)
    with importlib.import_module(".datamodules.sharing", __package__).sharing():
        sources = {key: source_of(recipe.data, recipe.seed) for key, recipe in _first(recipes, _data_key).items()}
        further = {
            f"{kind}:{name}": source_of(config, recipes[0].seed)
            for kind in ("others", "shift")
            for name, config in getattr(recipes[0].evaluate, kind).items()
        }
        _print_sources([*sources.values(), *further.values()])
        ready = [r for r in recipes if not sources[_data_key(r)].missing]
        if any(source.missing for source in further.values()) or not ready:
            console.print("Nothing can run before the missing data are there.")
            return
        speeds = {method: measure(recipe) for method, recipe in _first(ready, _method_key).items()}
    todo = [r for r in ready if not (folder / cell_name(r) / "metrics.json").exists()]
    _print_times(todo, sources, speeds)
    if len(ready) < len(recipes):
        console.print(f"{len(recipes) - len(ready)} cells cannot run before the missing data are there; the others can.")


def source_of(config: Any, seed: int) -> Source:
    """List a data set without drawing or decoding."""
    title = str(getattr(config, "dataset", None) or config.root or config.name)
    try:
        module = importlib.import_module(".datamodules", __package__)
        data = module.load(dataclasses.replace(config, shots="all"), seed)
        data.setup()
    except runner.user_errors() as error:
        return Source(title, missing=str(error))
    sizes = {split: len(samples) for split, samples in data.samples.items()}
    return Source(title, len(data.class_names), sizes["train"], sizes["test"])


def measure(recipe: Recipe) -> Speed | str:
    """Time one batch of a cell; the sentence where the cell cannot run."""
    try:
        made = session.prepare(recipe)
        return _measured(made)
    except runner.user_errors() as error:
        return str(error)


def _measured(made: session.Session) -> Speed:
    adapter, backbone, classes = made.adapter, made.backbone, made.training_classes
    loader = made.data.restrict(classes.names).loader("train", augment=True, batch_size=_BATCH)
    batch: dict[str, Any] = dict(next(iter(runner.batches_on(loader, backbone.device))))
    count = len(batch["path"])
    with torch.no_grad():
        encode = _seconds(lambda: backbone.encode_image(batch["image"], normalize=False)) / count
        if made.needs == "features":
            batch["feature"] = backbone.encode_image(batch["image"], normalize=False)
    if made.needs == "patches":
        from .tokens import image_token_features

        with torch.no_grad():
            batch["tokens"] = image_token_features(backbone, batch["image"])
    closed = {**batch, "views": batch["feature"][:, None]} if "feature" in batch else batch
    adapter.fit_closed_form(iter([closed]))
    step = _seconds(lambda: _step(made, batch)) if made.trainable else 0.0
    adapter.eval()
    with torch.no_grad():
        answer = _seconds(lambda: adapter.logits(batch)) / count if made.needs == "images" else 0.0
    return Speed(encode, step * made.recipe.data.batch_size / count, answer, len(classes), made.needs, made.trainable)


def _step(made: session.Session, batch: Batch) -> None:
    made.adapter.train()
    loss: Any = made.adapter.loss(batch)
    loss.backward()
    for parameter in made.adapter.parameters():
        parameter.grad = None


def _seconds(work: Callable[[], Any]) -> float:
    """Seconds of the second call: the first one warms up."""
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def cell_seconds(recipe: Recipe, source: Source, speed: Speed) -> float:
    """Estimate for one cell, without what cells share (the features of test images)."""
    share = 0.5 if recipe.protocol == "base_to_new" else 1.0
    classes = source.classes * share
    images = source.pool * share if recipe.data.shots == "all" else min(classes * recipe.data.shots, source.pool)
    augment = recipe.data.augment
    views = 1 if augment.preset == "none" else max(augment.views, 1)
    seconds = 0.0
    if speed.needs != "images":
        seconds += images * views * speed.encode
    if speed.trains:
        steps = max(1, images // recipe.data.batch_size) * recipe.trainer.epochs
        steps = min(steps, recipe.trainer.max_steps) if recipe.trainer.max_steps >= 0 else steps
        seconds += steps * speed.step * classes / max(speed.classes, 1)
        if speed.needs != "images" and augment.preset != "none" and augment.views == 0:
            seconds += steps * recipe.data.batch_size * speed.encode
    return seconds + source.test * speed.answer


def _print_sources(sources: Sequence[Source]) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("data", "classes", "training pool", "test"):
        table.add_column(column, justify="left" if column == "data" else "right")
    sources = list(dict.fromkeys(sources))  # cells that differ in templates alone read the same images
    for source in sources:
        if not source.missing:
            table.add_row(source.title, str(source.classes), str(source.pool), str(source.test))
    if any(not source.missing for source in sources):
        console.print(table)
    for source in sources:
        if source.missing:
            console.print(f"[yellow]missing[/yellow] {escape(source.title)}: {escape(source.missing)}")


def _print_times(cells: Sequence[Recipe], sources: dict[str, Source], speeds: dict[str, Speed | str]) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("method", "cells", "a step", "time of a cell", "in all"):
        table.add_column(column, justify="left" if column == "method" else "right")
    total = 0.0
    encoded: dict[str, float] = {}
    for method, speed in speeds.items():
        own = [r for r in cells if _method_key(r) == method]
        if isinstance(speed, str):
            console.print(f"[red]{escape(method)} cannot run:[/red] {escape(speed)}")
            continue
        times = [cell_seconds(r, sources[_data_key(r)], speed) for r in own]
        for recipe in own:
            source = sources[_data_key(recipe)]
            encoded[_data_key(recipe)] = source.test * speed.encode
        total += sum(times)
        mean = duration(sum(times) / len(times)) if times else "–"
        step = f"{1000 * speed.step:.0f} ms" if speed.trains else "–"
        table.add_row(method, str(len(own)), step, mean, duration(sum(times)))
    console.print(table)
    once = sum(encoded.values())
    console.print(
        f"estimated time on this machine: [bold]{duration(total + once)}[/bold], of which {duration(once)} for features of "
        "test images, computed once. Measured with one batch of each method and scaled by images, epochs and classes."
    )


def duration(seconds: float) -> str:
    """Seconds for people: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _method_key(recipe: Recipe) -> str:
    return str(recipe.cell.get("method") or recipe.method["name"])


def _data_key(recipe: Recipe) -> str:
    section = dataclasses.asdict(recipe.data)
    for key in ("shots", "augment", "batch_size"):
        section.pop(key)
    return json.dumps(section, sort_keys=True, default=str)


def _first(recipes: Sequence[Recipe], key: Callable[[Recipe], str]) -> dict[str, Recipe]:
    """The first recipe of each key."""
    found: dict[str, Recipe] = {}
    for recipe in recipes:
        found.setdefault(key(recipe), recipe)
    return found
