"""The card beside an artefact: what it is, what it was made from, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LOADING = """from limpet.inference import Classifier

classifier = Classifier.load("{folder}")
for prediction in classifier.predict(["photo.jpg"]):
    print(prediction.label, prediction.probability, prediction.error)
"""
_SPACES = {
    "all": "all classes",
    "base": "base classes",
    "new": "new classes",
    "joint": "base and new together",
}


def card(content: Mapping[str, Any]) -> str:
    """Return the card (Markdown) for the content of `adapter.json`."""
    info, spec = dict(content.get("info", {})), content["backbone"]["spec"]
    metrics = info.get("metrics")
    info = {**(metrics if isinstance(metrics, Mapping) else {}), **info}
    names = [str(name) for name in content["classes"]["names"]]
    numbers = content["tensors"]["numbers"]
    lines = [
        f"# Limpet adapter: {_code(content['method']['name'])}",
        "",
        f"Adapts the frozen CLIP {_code(spec.get('name'))}"
        + (f" (weights {_code(spec['pretrained'])})" if spec.get("pretrained") else "")
        + f" to {len(names)} classes. It holds {numbers:,} numbers; the backbone is not included and keeps its"
        " own licence.",
        "",
        "| | |",
        "| --- | --- |",
    ]
    facts = {
        "Recipe": info.get("recipe"),
        "Method": content["method"]["name"],
        "Protocol": info.get("protocol"),
        "Seed": info.get("seed"),
        "Images per class (shots)": info.get("shots"),
        "Split (hash)": info.get("split_hash"),
        "Backbone fingerprint": content["backbone"]["fingerprint"],
        "Precision": spec.get("precision"),
        "Changed since the fit": _changes(info.get("history")),
        "Libraries": ", ".join(f"{name} {number}" for name, number in content["libraries"].items()),
    }
    lines += [f"| {key} | {_code(value)} |" for key, value in facts.items() if value is not None]
    lines += [
        "",
        "## Load it",
        "",
        "In this folder:",
        "",
        "```python",
        LOADING.format(folder=".").rstrip(),
        "```",
        "",
    ]
    lines += _results(metrics)
    lines += ["## Classes", "", ", ".join(_code(name) for name in names[:200])]
    if len(names) > 200:
        lines += ["", f"and {len(names) - 200} more, listed in `adapter.json`."]
    lines += [
        "",
        "## Limits",
        "",
        "It answers with one of the classes above, whatever the image shows. Its numbers hold for images like those"
        " it was tested on; test it on your own before relying on it. Limpet refuses to load it on another backbone.",
        "",
    ]
    return "\n".join(lines)


def _changes(history: Any) -> str | None:
    """What was done to the classes, in the order it was done."""
    parts = []
    for step in history if isinstance(history, list) else ():
        for key, value in step.items():
            words = (f"{a} to {b}" for a, b in value.items()) if key == "renamed" else map(str, value)
            parts.append(f"{key} {', '.join(words)}")
    return "; ".join(parts) or None


def _results(metrics: Any) -> list[str]:
    """The table of test results, where they are known."""
    results = metrics.get("results") if isinstance(metrics, Mapping) else None
    if not results:
        return []
    lines = [
        "## Results on the test images",
        "",
        "| Classes | Images | Accuracy | Balanced accuracy | Macro F1 |",
    ]
    lines.append("| --- | --- | --- | --- | --- |")
    for space, values in results.items():
        cells = [
            f"{100 * values[key]:.1f} %" if key in values else "" for key in ("accuracy", "balanced_accuracy")
        ]
        f1 = f"{100 * values['macro_f1']:.1f} %" if "macro_f1" in values else ""
        lines.append(
            f"| {_SPACES.get(space, space)} | {values.get('images', '')} | {' | '.join(cells)} | {f1} |"
        )
    return [*lines, ""]


def _code(value: Any) -> str:
    """A value as Markdown code in one line, whatever characters it holds."""
    text = " ".join(str(value).split()).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in _ticks(text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _ticks(text: str) -> list[str]:
    import re

    return re.findall("`+", text)
