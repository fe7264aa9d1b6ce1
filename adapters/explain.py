"""`limpet explain`: what a decision rests on, as a picture.

For ViT towers the patches that speak for the answer, for caches the nearest training images, for learned prompts the words
nearest to the learned tokens, for methods that compare with texts these, the most similar first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import blocks, files
from .errors import LimpetError, nearest
from .image_sources import find_sources, open_image

if TYPE_CHECKING:
    from .adapter import Adapter
    from .backbone import FrozenClip
    from .inference import Classifier

WORDS, SUPPORT, TOP = 3, 5, 5


@dataclass(frozen=True)
class Support:
    """A training image near to the one explained: its path, its class, and its weight in the decision."""

    path: str
    label: str
    weight: float


@dataclass
class Evidence:
    """What was found about one image.

    Attributes:
        label: the class explained.
        top: the likeliest classes with their probabilities, best first.
        picture: (H, W, 3) in [0, 1], the image as the network sees it.
        patches: (h, w) in [0, 1], how much each patch speaks for the class; None where it cannot be said.
        support: the nearest training images; empty for methods without a cache.
        words: for each learned token its name and the nearest words with their distances.
        because: what the method itself says for the class, in words with a number, strongest first.
        between_words: median distance of two words of the vocabulary, to compare with; None without `words`.
        notes: sentences on what could not be shown.
    """

    label: str
    top: list[tuple[str, float]]
    picture: NDArray[np.float64]
    patches: NDArray[np.float64] | None = None
    support: list[Support] = field(default_factory=list)
    words: list[tuple[str, list[tuple[str, float]]]] = field(default_factory=list)
    because: list[tuple[str, float]] = field(default_factory=list)
    between_words: float | None = None
    notes: list[str] = field(default_factory=list)


def explain(classifier: Classifier, image: Any, label: str | None = None) -> Evidence:
    """Find what the decision about an image rests on.

    Args:
        classifier: a fitted adapter that classifies.
        image: a path or a PIL image.
        label: the class to explain; the most probable one by default.

    Raises:
        LimpetError: there is no such class, or nothing can be shown of this adapter.
        ValueError, OSError: the image cannot be read.
    """
    adapter, names = classifier.adapter, classifier.classes
    if label is not None and label not in names:
        raise LimpetError(f"There is no class '{label}'.{nearest(label, names)} Known: {', '.join(names[:12])}.")
    pixels = classifier.transform(open_image(image))[None].to(classifier.backbone.device)
    probabilities = classifier.probabilities(pixels)[0]
    values, order = probabilities.topk(min(TOP, len(names)))
    chosen = names.index(label) if label is not None else int(order[0])
    top = [(names[i], float(v)) for i, v in zip(order.tolist(), values, strict=True)]
    found = Evidence(names[chosen], top, seen(classifier.backbone, pixels[0]))
    problem = blocks.image_problem(classifier.backbone.spec)
    if problem is None:
        found.patches = relevance(adapter, pixels, chosen)
        if found.patches is None:
            found.notes.append(f"'{adapter.name}' does not pass the image through the tower in a way that patches can be told from.")
    else:
        found.notes.append(f"No map of patches: {problem}")
    with torch.no_grad():
        found.support = nearest_support(adapter, pixels)
        found.words, found.between_words = nearest_words(adapter, names[chosen])
    found.because = classifier.because(pixels, [chosen])[0]
    if found.patches is None and not (found.support or found.words or found.because):
        raise LimpetError(f"Nothing can be shown of this decision: {found.notes[0]}")
    return found


def relevance(adapter: Adapter, pixels: Tensor, label: int) -> NDArray[np.float64] | None:
    """How much each patch of one image (1, 3, H, W) speaks for a class: (h, w), greatest 1; None where no gradient flows.

    In every block the attention weights are multiplied by their gradient, negative products dropped, heads averaged, and
    the result accumulated over the blocks: R <- R + mean_h relu(dA * A) R. Learned prompts are left out of R.

    Source: Chefer, Gur & Wolf 2021, arXiv 2103.15679, equations 5 and 6.
    """
    backbone = adapter.backbone
    count = pixels.shape[0]
    with torch.enable_grad(), blocks.watched_attention() as weights:
        images = pixels.detach().clone().requires_grad_(True)
        batch: dict[str, Any] = {"path": [""] * count, "index": torch.arange(count)}
        spec = backbone.spec
        if adapter.needs(adapter.config, spec) == "features" or adapter.image_alone(adapter.config, spec):  # no boxes here
            batch["feature"] = blocks.image_features(backbone, images).to(adapter.dtype)
        else:
            batch["image"] = images
        score = adapter.logits(batch)[0, label]
        if not weights or not score.requires_grad:
            return None
        gradients = torch.autograd.grad(score, weights, allow_unused=True)
    rows, columns = backbone.model.visual.grid_size
    size = 1 + rows * columns
    total = torch.eye(size, dtype=torch.float64)
    for weight, gradient in zip(weights, gradients, strict=True):
        if gradient is None:
            continue
        step = (weight * gradient)[0].detach().double().cpu().clamp(min=0).mean(0)[:size, :size]
        total = total[: len(step)] + step @ total
    patches = (total[0] if backbone.spec.image_pool == "tok" else total.mean(0))[1:]
    peak = float(patches.max())
    shown: NDArray[np.float64] = (patches / peak if peak > 0 else patches).reshape(rows, columns).numpy()
    return shown


def nearest_support(adapter: Adapter, pixels: Tensor) -> list[Support]:
    """The training images with the greatest weight in the decision, for methods that keep a cache of them."""
    feature = adapter.backbone.encode_image(pixels, normalize=False)
    weights = adapter.support_weights({"feature": feature, "path": [""], "index": torch.arange(1)})
    if weights is None or not weights.numel():
        return []
    values, order = weights[0].topk(min(SUPPORT, weights.shape[1]))
    labels, paths = adapter.support_labels(), adapter.support_paths
    return [Support(paths[i] if i < len(paths) else "", labels[i], float(v)) for i, v in zip(order.tolist(), values, strict=True)]


def nearest_words(adapter: Adapter, label: str) -> tuple[list[tuple[str, list[tuple[str, float]]]], float | None]:
    """The words whose embeddings are nearest (Euclidean) to each learned token, and the median distance of two words.

    Source: CoOp, arXiv 2109.01134, table 4.
    """
    tokens = adapter.learned_tokens(label)
    tower = adapter.backbone.text
    if not tokens or tower is None:
        return [], None
    table = tower.embedding.weight.detach().float()
    trained = adapter.backbone.trained_tokens
    words_only = torch.ones(len(table), dtype=torch.bool) if trained is None else trained.bool().clone()
    words_only[[tower.end_id, tower.pad_id, int(adapter.backbone.tokenize(["a"])[0, 0])]] = False  # marks, not words
    known = torch.nonzero(words_only.cpu()).flatten()
    table = table[known.to(table.device)]
    found = []
    for name, vectors in tokens.items():
        distances = torch.cdist(vectors.detach().float().to(table.device), table)
        values, order = distances.topk(min(WORDS, len(table)), largest=False)
        for n, (row, places) in enumerate(zip(values.tolist(), order.tolist(), strict=True), start=1):
            words = [(adapter.backbone.tokenizer.word(int(known[i])), d) for i, d in zip(places, row, strict=True)]
            found.append((f"{name} {n}", words))
    sample = table[torch.linspace(0, len(table) - 1, min(len(table), 256)).long().to(table.device)]
    return found, float(torch.pdist(sample).median()) if len(sample) > 1 else None


def seen(backbone: FrozenClip, pixels: Tensor) -> NDArray[np.float64]:
    """The network's input (3, H, W) as a picture (H, W, 3) in [0, 1]."""
    preprocessing = backbone.spec.preprocessing
    mean, std = (torch.tensor(preprocessing[key], dtype=torch.float64)[:, None, None] for key in ("mean", "std"))
    picture: NDArray[np.float64] = (pixels.double().cpu() * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
    return picture


def explain_command(run: Path, image: str, out: Path | None = None, label: str | None = None, force: bool = False) -> Path:
    """Explain one image with a run's adapter, write a PNG, print what it shows, and return its path.

    Args:
        run: a run's or an artefact's folder.
        image: a path, or a member of an archive that holds nothing else.
        out: the PNG; a new one in the run's folder by default.
        label: the class to explain; the most probable one by default.
        force: overwrite `out` where it exists.

    Raises:
        LimpetError: the image cannot be read, there is nothing to show, or the file exists.
    """
    from .explain_picture import draw
    from .inference import Classifier
    from .predict import task_of_artefact
    from .screens import say

    if out is not None and out.suffix.lower() != ".png":
        raise LimpetError(f"The explanation is a PNG; {out} should end in .png.")
    if out is not None and out.exists() and not force:
        raise LimpetError(f"{out} is there already; give another name, or --force to overwrite it.")
    sources = find_sources(image)
    if len(sources) != 1:
        raise LimpetError(f"{image} holds {len(sources)} images; `limpet explain` takes one.")
    if task_of_artefact(run) != "classification":
        raise LimpetError("`limpet explain` shows what a classification rests on; this adapter does something else.")
    classifier = Classifier.load(run)
    try:
        found = explain(classifier, sources[0], label)
    except LimpetError:
        raise
    except (OSError, ValueError) as error:
        raise LimpetError(str(error)) from None
    target = out or _fresh(run, Path(str(sources[0])).stem)
    target.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(target, draw(found, training_images(run)))
    say("\n".join([*sentences(found), f"Picture: {target}"]))
    return target


def sentences(found: Evidence) -> list[str]:
    """The evidence in words."""
    from .explain_picture import SAID

    lines = [", ".join(f"{name} {100 * p:.1f} %" for name, p in found.top)]
    lines += [f"{number:.3f} {words}" for words, number in found.because[:SAID]]
    lines += [f"near training image: {s.path or '(unnamed)'} ({s.label}), weight {s.weight:.3f}" for s in found.support]
    lines += [f"{name}: " + ", ".join(f"{word} ({distance:.2f})" for word, distance in words) for name, words in found.words]
    if found.between_words is not None:
        lines.append(f"Distances in brackets; two words of the vocabulary lie {found.between_words:.2f} apart (median).")
    return lines + found.notes


def training_images(run: Path) -> Callable[[str], Any]:
    """A function from the path of a training image to its picture, or None where it is not to be had any more."""
    cache: dict[str, Any] = {}

    def find(path: str) -> Any:
        if "data" not in cache:
            cache["data"] = _data(run)
        data = cache["data"]
        if data is not None:
            sample = next((s for s in data.samples["train"] if s.path == path), None)
            if sample is not None:
                return data.reader(sample)
        try:
            return open_image(path)
        except (OSError, ValueError):
            return None

    return find


def _data(run: Path) -> Any:
    from .errors import RecipeError, RunError
    from .recipe import Recipe
    from .session import load_data

    try:
        return load_data(Recipe.from_run(run))
    except (RecipeError, RunError, OSError, ValueError):  # moved or deleted since: the names are shown alone
        return None


def _fresh(run: Path, stem: str) -> Path:
    place = run.parent if (run / "adapter.json").is_file() else run
    number = 1
    while (place / f"explained-{stem}-{number}.png").exists():
        number += 1
    return place / f"explained-{stem}-{number}.png"
