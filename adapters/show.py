"""What a run prints: the plan before it starts, and the table when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from .session import Session

console = Console(highlight=False)

TITLES = {"all": "all", "base": "base", "new": "new", "joint": "base + new"}
MEANS = {"other_mean": "other (mean)", "shift_mean": "shift (mean)"}


said: set[str] = set()  # notes of this command so far: the cells of a grid share most


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
        **_what(session, classes),
        "images": f"{counts}  ({recipe.data.shots} shot{'' if recipe.data.shots == 1 else 's'})",
        "split": f"{manifest['hash'][:12]}",
    }
    if session.trainable:
        augment = recipe.data.augment
        epochs = "1 epoch" if recipe.trainer.epochs == 1 else f"{recipe.trainer.epochs} epochs"
        if recipe.trainer.max_steps >= 0:
            epochs += f", at most {recipe.trainer.max_steps} step{'' if recipe.trainer.max_steps == 1 else 's'}"
        views = "fresh at every epoch" if augment.views == 0 else f"{augment.views} cached views (not fresh ones)"
        lines["training"] = f"{epochs}, batch {recipe.data.batch_size}, {recipe.optim.name} {recipe.optim.lr:g}"
        lines["augmentation"] = "none" if augment.preset == "none" else f"{augment.preset}, {views}"
    if session.plan is not None:
        from .stream_show import plan_line

        parts = session.plan.stream.sessions
        totals = {split: sum(len(part.data.samples[split]) for part in parts) for split in ("train", "val", "test")}
        lines["images"] = ", ".join(f"{n} {split}" for split, n in totals.items()) + f"  ({recipe.data.shots} shots)"
        lines["stream"] = plan_line(session.plan, recipe.continual.name)
    if session.targets:
        lines["also tested on"] = ", ".join(f"{t.space} ({len(t.data.samples['test'])} images)" for t in session.targets)
    table = Table.grid(padding=(0, 2))
    for key, value in lines.items():
        table.add_row(f"[bold]{key}[/bold]", escape(value))
    console.print(table)
    for note in (*recipe.notes, *session.notes, *adapter.notes):
        if note not in said:
            console.print(f"[yellow]note[/yellow] {escape(note)}")
            said.add(note)


def _what(session: Session, classes: str) -> dict[str, str]:
    """The line about the classes or, where images are ordered, about the instructions."""
    if session.adapter.task != "ordering":
        return {"classes": classes}
    every = session.classes
    more = f"  (1 of {len(every)} categories)" if len(every) > 1 else ""
    return {"order": every.texts[every.names[0]][0] + more}


def checked(session: Session) -> None:
    """Print what `limpet check` adds to the plan: memory, disk and the next command."""
    backbone, recipe = session.backbone, session.recipe
    weights = sum(t.numel() * t.element_size() for t in backbone.model.state_dict().values())
    trained = sum(p.numel() * p.element_size() for p in session.adapter.learnable())
    lines = [f"weights {size(weights)}"]
    if trained:
        lines.append(f"trained tensors with optimiser {size(4 * trained)}")
    if session.needs == "features":
        views = recipe.data.augment.views if recipe.data.augment.preset != "none" else 0
        rows = sum(len(part) for part in session.data.samples.values()) + views * len(session.data.samples["train"])
        lines.append(f"cached features on disk {size(4 * rows * backbone.embed_dim)}")
    else:
        lines.append(f"one batch of images {size(12 * recipe.data.batch_size * backbone.image_size**2)} before activations")
    console.print("[bold]memory[/bold] " + ", ".join(lines))
    console.print("All is ready: run the same words with `limpet fit`.")


def size(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def results(session: Session, metrics: Mapping[str, Any], run_dir: Path) -> None:
    """Print the table of a finished run, where it is, and what to do next."""
    title = f"{metrics['recipe']}: {metrics['method']} on {metrics['backbone']}, test images, %"
    table = Table(title=escape(title), box=SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("classes", min_width=17 if metrics.get("controls") else 12, max_width=24, overflow="fold")
    top = next((key for values in metrics["results"].values() for key in values if key.startswith("top")), None)
    shown = (top.replace("top", "top-"),) if top else ()
    for column in ("images", "accuracy", "zero-shot", "balanced", "macro-F1", "ECE", *shown):
        table.add_column(column, justify="right", no_wrap=True)
    marked = False
    for space, values in metrics["results"].items():
        mark = "*" if metrics["zero_shot_columns"] and space == "new" else ""
        marked |= bool(mark)
        reference = metrics["zero_shot"][space]
        table.add_row(
            f"{escape(TITLES.get(space, space))}{mark} ({values['classes']})",
            str(values["images"]),
            f"[bold]{percent(values['accuracy'])}[/bold]",
            percent(reference["accuracy"]),
            percent(values["balanced_accuracy"]),
            percent(values["macro_f1"]),
            percent(values["ece"]),
            *((percent(values.get(top)),) if top else ()),
        )
        for name, control in metrics.get("controls", {}).items():
            if space in control:
                shown_values = (control[space].get(k) for k in ("balanced_accuracy", "macro_f1", "ece", *((top,) if top else ())))
                words = (f"  {name.replace('_', ' ')}", "", percent(control[space]["accuracy"]), "")
                table.add_row(*words, *map(percent, shown_values), style="dim")
    if metrics.get("harmonic_mean") is not None:
        reference = metrics["zero_shot_harmonic_mean"]
        table.add_section()
        table.add_row("harmonic mean", "", f"[bold]{percent(metrics['harmonic_mean'])}[/bold]", percent(reference))
    for key, title in MEANS.items():
        # of one data set the mean says nothing new
        if metrics.get(key) is not None and sum(s.startswith(f"{key[:5]}:") for s in metrics["results"]) > 1:
            reference = metrics.get(f"zero_shot_{key}")
            table.add_row(title, "", f"[bold]{percent(metrics[key])}[/bold]", percent(reference))
    console.print(table)
    if marked:
        console.print("* columns of new classes are plain zero-shot CLIP with this method")
    if metrics["selected"]:
        chosen = ", ".join(f"{k} = {v:.4g}" if isinstance(v, float) else f"{k} = {v}" for k, v in metrics["selected"].items())
        console.print(f"chosen on {'test (as published)' if metrics['select'] == 'test_as_published' else 'val'}: {escape(chosen)}")
    for note in metrics["notes"]:
        if note not in session.notes:
            console.print(f"[yellow]note[/yellow] {escape(note)}")
    console.print(f"run folder: [bold]{escape(str(run_dir))}[/bold]")
    console.print(f"next: limpet predict {escape(str(run_dir))} FOLDER_OF_IMAGES", soft_wrap=True)
