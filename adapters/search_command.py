"""`limpet index` and `limpet search`: a folder's images, found by text or by image."""

from __future__ import annotations

import html
import importlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import contact_sheet, files
from .contact_sheet import Picture
from .csv_files import cell
from .errors import LimpetError, RunError
from .files import printable
from .image_index import Found, ImageIndex, build, check_target
from .predict import SUFFIXES, find_images, task_of_artefact

if TYPE_CHECKING:
    from rich.console import Console

    from .inference import Classifier

_CHANGEABLE = ("backbone", "trainer")


def index_command(
    folder: str, run: Path | None = None, overrides: Sequence[str] = (), out: Path | None = None,
    pooling: str = "class", groups: int | None = None, console: Console | None = None,
) -> int:  # fmt: skip
    """Make an index of the images below a folder.

    Args:
        folder: of the images.
        run: a run whose adapter's features are taken; None for the frozen backbone.
        overrides: `backbone=...` and `trainer=...` words, where there is no run.
        out: folder of the index; by default indexes/NAME_OF_THE_FOLDER.
        pooling: how an image becomes a vector.
        groups: also sort the images into so many groups (k-means), with a page.
        console: where to print.

    Returns:
        0, or 1 where some images could not be read (they are listed, also in the index).
    """
    from rich.console import Console

    console = console or Console()
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise LimpetError(f"There is no folder {folder} to make an index of.")
    target = out or Path("indexes") / (root.resolve().name or "images")
    check_target(target)
    inside = os.path.realpath(target)
    images = [name for name in find_images(str(root)) if not os.path.realpath(name).startswith(inside + os.sep)]
    if groups is not None and not 2 <= groups <= len(images):
        raise LimpetError(f"--groups is {groups}; {len(images)} images can be sorted into 2 to {len(images)} groups.")
    classifier, source = _classifier(run, overrides)
    index, broken = build(images, root, target, classifier, pooling, source)
    if groups is not None:
        _groups(index, groups, console)
    count = len(index.paths)
    text = f"{count} images, {index.vectors.shape[1]} numbers each ({source}, pooling {pooling})"
    console.print(text, highlight=False, markup=False)
    if broken:
        console.print(f"{len(broken)} of {len(images)} images could not be read and are not in the index:", highlight=False)
        for name, why in broken[:50]:
            console.print(f"  {printable(name)}: {why}", highlight=False, markup=False, soft_wrap=True)
        if len(broken) > 50:
            console.print("  and more, in index.json", highlight=False)
    console.print(f"Index: {target}", highlight=False, markup=False, soft_wrap=True)
    console.print(f'next: limpet search {target} "a text, or an image file"', highlight=False, markup=False, soft_wrap=True)
    return 1 if broken else 0


def _classifier(run: Path | None, overrides: Sequence[str]) -> tuple[Classifier, str]:
    """The adapter to index with, and what it comes from."""
    from .inference import Classifier

    if run is not None:
        if overrides:
            raise RunError(f"{overrides[0]}: with --run everything is the run's own; leave it out.")
        if task_of_artefact(run) != "classification":
            raise RunError(f"The adapter in {run} orders images and has no features to search by; take another run.")
        return Classifier.load(run), str(run)
    from .backbone import describe
    from .classes import ClassSet
    from .methods.zero_shot import Config, ZeroShot
    from .recipe import load_recipe
    from .session import check_device, load_backbone

    for word in overrides:
        key = word.partition("=")[0]
        if key.partition(".")[0] not in _CHANGEABLE:
            raise RunError(f"{key} has no part in an index; what can be set is backbone=... and trainer=...")
    recipe = load_recipe("base", overrides)
    check_device(recipe)
    backbone = load_backbone(recipe, describe(recipe.backbone))
    name = " / ".join(filter(None, (recipe.backbone.name, recipe.backbone.pretrained)))
    return Classifier(ZeroShot(Config()).setup(backbone, ClassSet(("image",)))), name


def search_command(
    folder: str, query: str, top: int = 10, out: Path | None = None, console: Console | None = None
) -> int:
    """Print the images of an index that are nearest to a text or an image; write a CSV and a contact sheet.

    Args:
        folder: of the index.
        query: path of an image, or a text.
        top: how many.
        out: the CSV; .png and .html are written beside it. By default a new one in the index's searches/.
        console: where to print.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    if out is not None and out.suffix.lower() != ".csv":
        raise LimpetError(f"What is found is written as CSV, with a contact sheet beside it; {out} should end in .csv.")
    index = ImageIndex.load(folder)
    image = Path(query).expanduser() if len(query) < 1000 and "\0" not in query else None
    is_image = image is not None and _is_file(image)
    shown = image.name if is_image and image is not None else query
    if not is_image and Path(query).suffix.lower() in SUFFIXES:
        raise LimpetError(f"There is no image {query} to search with.")
    found = index.search(image if is_image and image is not None else query, top)
    target = out or _fresh(index.folder / "searches", image.stem if is_image and image is not None else query)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        gone = _write(found, shown, len(index.paths), target)
    except OSError as error:
        raise LimpetError(f"The result cannot be written to {target}: {error.strerror or error}. Name a file with --out.") from None
    console.print(f"{shown}: the {len(found)} nearest of {len(index.paths)} images", highlight=False, markup=False)
    table = Table()
    table.add_column("rank", justify="right")
    table.add_column("image", overflow="fold")
    table.add_column("similarity", justify="right")
    root = Path(index.info["root"])
    for rank, one in enumerate(found, 1):
        path = Path(one.path)
        short = path.relative_to(root) if path.is_relative_to(root) else path
        table.add_row(str(rank), Text(printable(str(short))), f"{one.score:.3f}")
    console.print(table)
    if gone:
        console.print(f"{gone} of them cannot be read any more: the index is older than the folder.", style="yellow", highlight=False)
    for what, suffix in (("Found", target.suffix), ("Contact sheet", ".png"), ("Page", ".html")):
        console.print(f"{what}: {target.with_suffix(suffix)}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _write(found: Sequence[Found], query: str, count: int, target: Path) -> int:
    """Write CSV, PNG and page; returns how many of the images cannot be read any more."""
    rows = [
        {"rank": rank, "path": cell(printable(one.path)), "similarity": f"{one.score:.6f}"} for rank, one in enumerate(found, 1)
    ]
    files.write_csv(target, rows, ("rank", "path", "similarity"))
    pictures = [Picture(rank, one.path, f"{one.score:.3f}", Path(one.path).parent.name) for rank, one in enumerate(found, 1)]
    heading = f"{query}: nearest of {count} images"
    find = _finder()
    contact_sheet.png(pictures, find, target.with_suffix(".png"), heading)
    page = contact_sheet.page(query, [(heading, "Nearest first; the number is the cosine similarity.", pictures)], find)
    files.write_bytes(target.with_suffix(".html"), page.encode("utf-8", "replace"))
    return sum(find(one.path) is None for one in found)


def _finder() -> Any:
    """A function from a path to its picture, or None where it cannot be read."""
    images = importlib.import_module(".datamodules.images", __package__)

    def find(path: str) -> Any:
        try:
            return images.read_image(Path(path))
        except (OSError, ValueError, SyntaxError, MemoryError):
            return None

    return find


def _groups(index: ImageIndex, count: int, console: Console) -> None:
    """Sort the images into groups by k-means: groups.csv and a page with a sheet for each, most typical first."""
    from sklearn.cluster import KMeans

    vectors = np.asarray(index.vectors, np.float64)
    fitted = KMeans(min(count, len(vectors)), n_init=10, random_state=1).fit(vectors)
    away = np.linalg.norm(vectors - fitted.cluster_centers_[fitted.labels_], axis=1)
    # largest group first
    sizes = np.bincount(fitted.labels_, minlength=count)
    place = {int(label): n for n, label in enumerate(np.argsort(-sizes, kind="stable"), 1)}
    rows, sections = [], []
    for label, number in sorted(place.items(), key=lambda pair: pair[1]):
        members = np.flatnonzero(fitted.labels_ == label)
        members = members[np.argsort(away[members], kind="stable")]
        rows += [{"path": cell(printable(index.paths[i])), "group": number} for i in members]
        pictures = [Picture(n, index.paths[i], Path(index.paths[i]).parent.name) for n, i in enumerate(members[:24].tolist(), 1)]
        sections.append((f"Group {number}: {len(members)} images", "The most typical ones first.", pictures))
    files.write_csv(index.folder / "groups.csv", rows, ("path", "group"))
    note = f"<p class=note>{html.escape(str(index.info['root']))}: {len(index.paths)} images in {count} groups (k-means).</p>"
    page = contact_sheet.page("Groups of images", sections, _finder(), note)
    files.write_bytes(index.folder / "groups.html", page.encode("utf-8", "replace"))
    console.print(f"Groups: {index.folder / 'groups.csv'} and groups.html", highlight=False, markup=False, soft_wrap=True)


def _fresh(folder: Path, query: str) -> Path:
    """A file name for a search that does not exist yet."""
    slug = "-".join(re.findall(r"[A-Za-z0-9]+", query))[:40] or "search"
    number = 1
    while (folder / f"{number:03d}-{slug}.csv").exists():
        number += 1
    return folder / f"{number:03d}-{slug}.csv"
