"""The card beside an artefact or an export: what it is, what it was made from, what it is good for, and how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .backbone_licence import licence
from .export_loading import limpet as loading_code

_SPACES = {
    "all": "all classes",
    "base": "base classes",
    "new": "new classes",
    "joint": "base and new together",
}
_COLUMNS = {  # of the table of results, by task: key -> heading, and whether it is a share
    "classification": {
        "accuracy": ("Accuracy", True),
        "balanced_accuracy": ("Balanced accuracy", True),
        "macro_f1": ("Macro F1", True),
    },
    "ordering": {
        "spearman": ("Spearman", False),
        "pairwise_accuracy": ("Pairs in the right order", True),
        "kendall": ("Kendall's tau", False),
    },
    "referring": {"accuracy": ("Right box", True), "chance": ("By chance", True)},
    "anomaly": {"image_auroc": ("AUROC of images", False), "pixel_auroc": ("AUROC of pixels", False)},
}
_KINDS = {"classification": "classes", "ordering": "categories to put in order", "anomaly": "objects", "referring": "categories"}
_BESIDE = {"referring": "the choice without looking at the boxes", "anomaly": "that of the tower's own patch tokens"}
_USES = {
    "ordering": (
        "Putting images like those it was fitted on in order by what its instruction names.",
        "Every image gets a score, whatever it shows; other instructions than those of the fit were not measured.",
    ),
    "referring": (
        "Choosing among given boxes the one that a caption means.",
        "It chooses one of the boxes, even where none is meant.",
    ),
    "anomaly": (
        "Finding images, and places in them, that look more like the abnormal wordings than like the normal ones.",
        "Scores order images; no threshold was chosen, and what the wordings do not say may be missed.",
    ),
}


def card(
    content: Mapping[str, Any],
    task: str = "classification",
    *,
    title: str | None = None,
    front: Mapping[str, Any] | None = None,
    about: Sequence[str] = (),
    loading: str | None = None,
    packages: Sequence[str] = ("limpet",),
    facts: Mapping[str, Any] | None = None,
    seeds: Sequence[str] = (),
) -> str:
    """Return the card (Markdown) for the content of `adapter.json`.

    Args:
        content: of `adapter.json`.
        task: of the method.
        title: the heading; by default that of an adapter.
        front: entries of a YAML head.
        about: sentences about the files beside the card.
        loading: Python code that loads them in their folder; by default that of an adapter.
        packages: what the code needs.
        facts: further rows of the table of facts.
        seeds: lines of results over several seeds.
    """
    info, spec = dict(content.get("info", {})), content["backbone"]["spec"]
    metrics = info.get("metrics")
    info = {**(metrics if isinstance(metrics, Mapping) else {}), **info}
    names = [str(name) for name in content["classes"]["names"]]
    numbers = content["tensors"]["numbers"]
    kind = _KINDS.get(task, "classes")
    weights = f" (weights {_code(spec['pretrained'])})" if spec.get("pretrained") else ""
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in (front or {}).items()]
    lines = ["---", *lines, "---", ""] if lines else []
    lines += [
        f"# {title or 'Limpet adapter: ' + _code(content['method']['name'])}",
        "",
        f"Adapts the frozen CLIP {_code(spec.get('name'))}{weights} to {len(names)} {kind}. The adapter holds {numbers:,} "
        f"numbers. Licence of the backbone's weights: {licence(spec)}.",
        "",
        *_paragraphs(about),
        "| | |",
        "| --- | --- |",
    ]
    rows = {
        "Recipe": info.get("recipe"),
        "Method": info.get("method") or content["method"]["name"],
        "Protocol": info.get("protocol"),
        "Seed": info.get("seed"),
        "Data": info.get("data"),
        "Images per class (shots)": info.get("shots"),
        "Split (hash)": info.get("split_hash"),
        "Backbone fingerprint": content["backbone"]["fingerprint"],
        "Precision": spec.get("precision"),
        "Changed since the fit": _changes(info.get("history")),
        "Libraries": ", ".join(f"{name} {number}" for name, number in content["libraries"].items()),
        **(facts or {}),
    }
    lines += [f"| {key} | {_code(value)} |" for key, value in rows.items() if value is not None]
    lines += ["", "## Load it", "", f"In this folder, with {' and '.join(packages)} installed:", "", "```python"]
    lines += [(loading or loading_code(task)).strip(), "```", ""]
    lines += _results(metrics, task, seeds)
    lines += [f"## {kind.split(maxsplit=1)[0].capitalize()}", "", ", ".join(_code(name) for name in names[:200])]
    if len(names) > 200:
        lines += ["", f"and {len(names) - 200} more."]
    return "\n".join([*lines, "", *_use(task, len(names), metrics)])


def _paragraphs(sentences: Sequence[str]) -> list[str]:
    return [line for sentence in sentences for line in (sentence, "")]


def _use(task: str, count: int, metrics: Any) -> list[str]:
    """What it is meant for, and where that ends."""
    tested = isinstance(metrics, Mapping) and metrics.get("results")
    measured = (
        "The results above were measured on test images of the same source as the training images, and hold for images like those."
        if tested
        else "It was not measured on test images in this form."
    )
    if task in _USES:
        use, limits = _USES[task]
    else:
        use = f"Telling images of these {count} classes apart, where each image shows one of them: sorting, pre-labelling, counting."
        limits = (
            "It answers with one of these classes, whatever the image shows, and its probabilities are not a promise: look at what "
            "it is sure of, too."
        )
    return [
        "## Intended use",
        "",
        f"{use} Decisions about people, health or safety need a person who looks at the image.",
        "",
        "## Limits",
        "",
        f"{limits} {measured} Test it on your own images before relying on it: another camera, place, season or laboratory can "
        "change the figures. What CLIP learned from the web, its gaps and biases included, is still in the backbone.",
        "",
    ]


def _changes(history: Any) -> str | None:
    """What was done to the classes, in the order it was done."""
    parts = []
    for step in history if isinstance(history, list) else ():
        for key, value in step.items():
            words = (f"{a} to {b}" for a, b in value.items()) if key == "renamed" else map(str, value)
            parts.append(f"{key} {', '.join(words)}")
    return "; ".join(parts) or None


def _results(metrics: Any, task: str, seeds: Sequence[str]) -> list[str]:
    """The table of test results, where they are known."""
    results = metrics.get("results") if isinstance(metrics, Mapping) else None
    if not results:
        return []
    columns = _COLUMNS.get(task) or _COLUMNS["classification"]
    before = metrics.get("zero_shot") or {}
    first = next(iter(columns))
    seed = f" (seed {metrics['seed']})" if "seed" in metrics else ""
    lines = [
        f"## Results on the test images{seed}",
        "",
        f"| {'Classes' if task == 'classification' else 'Categories'} | Images | Zero-shot | "
        + " | ".join(heading for heading, _ in columns.values())
        + " |",
        "| --- | --- | --- |" + " --- |" * len(columns),
    ]
    for space, values in results.items():
        cells = [_number(values.get(key), share) for key, (_, share) in columns.items()]
        zero = _number(before.get(space, {}).get(first), columns[first][1])
        lines.append(f"| {_SPACES.get(space, space)} | {values.get('images', '')} | {zero} | {' | '.join(cells)} |")
    beside = _BESIDE.get(task) or f"the {columns[first][0].lower()} of the same CLIP without training"
    return [*lines, "", f"Zero-shot is {beside}.", "", *_paragraphs(seeds)]


def _number(value: Any, share: bool) -> str:
    if not isinstance(value, int | float):
        return ""
    return f"{100 * value:.1f} %" if share else f"{value:.3f}"


def _code(value: Any) -> str:
    """A value as Markdown code in one line, whatever characters it holds."""
    text = " ".join(str(value).split()).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in _ticks(text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _ticks(text: str) -> list[str]:
    return re.findall("`+", text)
