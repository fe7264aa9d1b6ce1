"""What a run prints: the plan before it starts, and the table when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from .session import Session

console = Console(highlight=False)

TITLES = {"all": "all", "base": "base", "new": "new", "joint": "base + new"}
MEANS = {"other_mean": "other (mean)", "shift_mean": "shift (mean)"}


def percent(value: float | None) -> str:
    """A share in [0, 1] as per cent with one decimal; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f}"


def plan(session: Session, manifest: Mapping[str, Any] | None = None) -> None:
    """Print what is about to happen."""
    recipe, backbone, adapter = session.recipe, session.backbone, session.adapter
    manifest = manifest or session.data.manifest()
    spec, samples = backbone.spec, session.data.samples
    trained = sum(p.numel() for p in adapter.learnable())
    frozen = sum(p.numel() for p in backbone.model.parameters())
    source = f"{spec.name}" + (f" / {spec.pretrained}" if spec.pretrained else "")
    base, every = len(session.training_classes), len(session.classes)
    classes = f"{base} base + {every - base} new" if recipe.protocol == "base_to_new" else str(every)
    counts = ", ".join(f"{len(samples[split])} {split}" for split in ("train", "val", "test"))
    share = f"{trained:,} of {frozen + trained:,} ({100 * trained / (frozen + trained):.3f} %)" if trained else "none"
    if session.trainable and not trained:
        share = "as many as the training images give"
    lines = {
        "recipe": f"{recipe.name}  (seed {recipe.seed}, protocol {recipe.protocol})",
        "backbone": f"{source}  {spec.image_size} px, {spec.precision}, frozen",
        "method": f"{adapter.variant(adapter.config)}  trained parameters: {share}",
        "classes": classes,
        "images": f"{counts}  ({recipe.data.shots} shots)",
        "split": f"{manifest['hash'][:12]}",
    }
    if session.trainable:
        augment = recipe.data.augment
        views = "fresh at every epoch" if augment.views == 0 else f"{augment.views} cached views (not fresh ones)"
        lines["training"] = f"{recipe.trainer.epochs} epochs, batch {recipe.data.batch_size}, {recipe.optim.name} {recipe.optim.lr:g}"
        lines["augmentation"] = "none" if augment.preset == "none" else f"{augment.preset}, {views}"
    if session.targets:
        lines["also tested on"] = ", ".join(f"{t.space} ({len(t.data.samples['test'])} images)" for t in session.targets)
    table = Table.grid(padding=(0, 2))
    for key, value in lines.items():
        table.add_row(f"[bold]{key}[/bold]", escape(value))
    console.print(table)
    for note in (*recipe.notes, *session.notes, *adapter.notes):
        console.print(f"[yellow]note[/yellow] {escape(note)}")


def results(session: Session, metrics: Mapping[str, Any], run_dir: Path) -> None:
    """Print the table of a finished run, where it is, and what to do next."""
    table = Table(title=f"{metrics['recipe']}: {metrics['method']} on {metrics['backbone']}, test images, %")
    table.add_column("classes", no_wrap=True)
    for column in ("number", "images", "accuracy", "zero-shot", "balanced", "macro-F1", "ECE"):
        table.add_column(column, justify="right")
    marked = False
    for space, values in metrics["results"].items():
        mark = "*" if metrics["zero_shot_columns"] and space == "new" else ""
        marked |= bool(mark)
        reference = metrics["zero_shot"][space]
        table.add_row(
            escape(TITLES.get(space, space)) + mark,
            str(values["classes"]),
            str(values["images"]),
            f"[bold]{percent(values['accuracy'])}[/bold]",
            percent(reference["accuracy"]),
            percent(values["balanced_accuracy"]),
            percent(values["macro_f1"]),
            percent(values["ece"]),
        )
    if metrics.get("harmonic_mean") is not None:
        reference = metrics["zero_shot_harmonic_mean"]
        table.add_section()
        table.add_row("harmonic mean", "", "", f"[bold]{percent(metrics['harmonic_mean'])}[/bold]", percent(reference))
    for key, title in MEANS.items():
        # of one data set the mean says nothing new
        if metrics.get(key) is not None and sum(s.startswith(f"{key[:5]}:") for s in metrics["results"]) > 1:
            reference = metrics.get(f"zero_shot_{key}")
            table.add_row(title, "", "", f"[bold]{percent(metrics[key])}[/bold]", percent(reference))
    console.print(table)
    if marked:
        console.print("* columns of new classes are plain zero-shot CLIP with this method")
    if metrics["selected"]:
        chosen = ", ".join(f"{k} = {v:.4g}" if isinstance(v, float) else f"{k} = {v}" for k, v in metrics["selected"].items())
        console.print(f"chosen on {'test (as published)' if metrics['select'] == 'test_as_published' else 'val'}: {chosen}")
    for note in metrics["notes"]:
        if note not in session.notes:
            console.print(f"[yellow]note[/yellow] {escape(note)}")
    console.print(f"run folder: [bold]{escape(str(run_dir))}[/bold]")
    console.print(f"next: limpet predict {escape(str(run_dir))} FOLDER_OF_IMAGES", soft_wrap=True)
