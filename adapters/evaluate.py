"""Measure a finished run again, on another split or on other images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from . import artifact, files
from .callbacks.base_to_new import Spaces, label_spaces, measure
from .callbacks.cross_dataset import OTHER, measure_targets
from .callbacks.shift import SHIFT
from .classes import ClassSet
from .errors import RunError
from .features import as_read
from .grow import names_now
from .more_measures import measure_more
from .more_measures import show as show_more
from .recipe import Recipe
from .session import check_retrieval, check_task, choose_classes, load_data, set_transforms, suit
from .show import MEANS, console, percent
from .tasks import task_of
from .transfer import facts, load_targets, ready
from .wordings import check as check_wordings

if TYPE_CHECKING:
    from .adapter import Adapter

CHANGEABLE = ("data", "classes", "protocol", "evaluate", "seed")


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse what a trained adapter cannot be given any more: another method, backbone or training.

    Raises:
        RunError: names the key.
    """
    for word in overrides:
        key = word.partition("=")[0]
        if key.partition(".")[0] not in CHANGEABLE:
            raise RunError(
                f"{key} cannot be changed in an evaluation: the adapter is trained. Start a new run with `limpet fit`, "
                f"or change one of {', '.join(CHANGEABLE)}."
            )


def present(classes: ClassSet, now: dict[str, str], own: ClassSet) -> ClassSet:
    """Classes of the data under the names they have by now, worded as the adapter words them where they were changed."""
    renamed = classes.renamed(now)
    kept = {now[name]: classes.texts[name] for name in classes.names}
    changed = {new: own.texts[new] for old, new in now.items() if old != new and new in own}
    return replace(renamed, texts={**kept, **changed})


class UnderPresentNames:
    """Data whose classes are asked for by the names they have by now.

    Args:
        data: a data module.
        now: present name of each class of the data.
    """

    def __init__(self, data: Any, now: dict[str, str]) -> None:
        self.data, self.before = data, {new: old for old, new in now.items()}

    def restrict(self, names: Sequence[str]) -> Any:
        """The same split with only these classes, labels in this order."""
        return self.data.restrict([self.before[name] for name in names])


def sections(recipe: Recipe, overrides: Sequence[str]) -> dict[str, Recipe]:
    """What is to be measured: the recipe of each task of a stream by its name, or the recipe itself under "".

    Raises:
        RunError: something is asked for that is measured on one data set.
    """
    given = [word.partition("=")[0] for word in overrides]
    named = getattr(recipe.data, "classnames", "")
    moved = "data.root" in given and "data.classnames" not in given and not getattr(recipe.data, "table", None)
    if moved and named and not Path(recipe.data.root or "", named).expanduser().is_file():  # it lies in the folder of the fit
        recipe = replace(recipe, data=replace(recipe.data, classnames=type(recipe.data)().classnames))
    if recipe.stream.by != "tasks" or any(key.partition(".")[0] == "data" for key in given):
        return {"": replace(recipe, stream=replace(recipe.stream, by=None))}
    single = {
        "evaluate.wordings": recipe.evaluate.wordings,
        "evaluate.task": recipe.evaluate.task,
        "protocol=base_to_new": recipe.protocol == "base_to_new",
    }
    for key, asked in single.items():
        if asked:
            raise RunError(
                f"{key} is measured on one data set, and this run has {len(recipe.stream.tasks)} tasks: name one with data.root "
                "(or data=reef, data=table, ...)."
            )
    one = replace(recipe.stream, by=None)
    return {name: replace(recipe, data=data, stream=one) for name, data in recipe.stream.tasks.items()}


def split_hash(hashes: Sequence[str]) -> str:
    """The hash of a split, or one over those of several."""
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(json.dumps(list(hashes)).encode()).hexdigest()


class Part:
    """One data set with what an adapter reads of it, and its classes under their present names.

    Args:
        recipe: its data and classes.
        adapter: the adapter that will answer.
        history: changes of the adapter's classes since the fit.
        run_dir: the run, for sentences.

    Attributes:
        data: the data module, with features where the method reads only those.
        images: the same with images.
        named: `data`, asked for by present names.
        classes: the classes under present names.

    Raises:
        RunError: none of the classes is left.
    """

    def __init__(self, recipe: Recipe, adapter: Adapter, history: Sequence[Mapping[str, Any]], run_dir: Path) -> None:
        data = load_data(recipe)
        classes = choose_classes(recipe, data)
        now = names_now(history, classes.names)
        if not now:
            raise RunError(f"All classes of these data were removed from the adapter in {run_dir}: nothing can be measured.")
        data = data.restrict(list(now))
        self.classes = present(classes.only(list(now)), now, adapter.classes)
        check_task(type(adapter), data)
        self.notes = check_wordings(recipe.evaluate.wordings, self.classes, adapter.task)
        if recipe.evaluate.task is not None:
            check_retrieval(recipe, type(adapter), data)
        suit(data, adapter)
        set_transforms(data, adapter.backbone)
        self.images = data
        self.data = as_read(adapter, data, recipe.data.augment, recipe.seed, views=0)
        self.named = UnderPresentNames(self.data, now)

    def say(self, adapter: Adapter) -> None:
        """Print which classes are no candidates, and notes about wordings."""
        other = [name for name in adapter.classes.names if name not in self.classes]
        if other:
            console.print(f"not among these data, and no candidates here: {', '.join(other)}", markup=False)
        for note in self.notes:
            console.print(f"[yellow]note[/yellow] {escape(note)}")


def evaluate_run(run_dir: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Evaluate the newest artefact of a run with its recipe, changed by `overrides`; print and store the result.

    Classes are those of the data: trained ones are answered as trained, others from their text where the method can. A
    stream of tasks is measured task by task, each with its own classes; where `overrides` name data, those are measured.

    Raises:
        RunError: the run has no artefact.
    """
    check_overrides(overrides)
    recipe = Recipe.from_run(run_dir, overrides)
    folder = run_dir / "adapter"
    if not folder.is_dir():
        raise RunError(f"{run_dir} holds no adapter: the run did not finish. Continue it with `limpet resume {run_dir}`.")
    adapter = artifact.load(folder)
    history = artifact.load_info(folder).get("info", {}).get("history", ())
    features = adapter.needs(adapter.config, adapter.backbone.spec) == "features"
    spaces, more = Spaces(), dict[str, Any]()
    parts = sections(recipe, overrides)
    measured = []
    for task, own in parts.items():
        part = Part(own, adapter, history, run_dir)
        measured.append(part.data)
        if task:  # worded as in the fit, where a task's own templates play no part
            worded = replace(part.classes, templates=tuple(recipe.classes.templates))
            spaces.add(measure(adapter, part.named, {f"task:{task}": worded}))
        else:
            part.say(adapter)
            spaces.add(measure(adapter, part.named, label_spaces(part.classes, recipe.protocol)))
            more = measure_more(adapter, part.named, part.images, part.classes, own)
    targets = load_targets(recipe, adapter.classes)
    for target in targets:
        suit(target.data, adapter)
    targets = ready(targets, adapter.backbone, features, recipe.seed)
    spaces.add(measure_targets(adapter, targets))
    result: dict[str, Any] = {
        "run": run_dir.name,
        "overrides": list(overrides),
        "split_hash": split_hash([data.manifest()["hash"] for data in measured]),
        "results": spaces.results(),
        "harmonic_mean": spaces.harmonic_mean(),
        "unanswered": spaces.unanswered,
        "unreadable": sorted({path for data in measured for path in data.unreadable}),
    }
    if len(parts) > 1:
        result["task_mean"] = spaces.mean("task:")
    result |= more
    if targets:
        result |= {"transfer": facts(targets), "other_mean": spaces.mean(OTHER), "shift_mean": spaces.mean(SHIFT)}
    digest = hashlib.sha256(json.dumps(list(overrides)).encode()).hexdigest()[:8]
    path = run_dir / f"evaluation-{digest}.json"
    files.write_json(path, result)
    for space, values in result["results"].items():
        console.print(f"{escape(space)}: {task_of(adapter).lines(values)}")
    if result["harmonic_mean"] is not None:
        console.print(f"harmonic mean: [bold]{percent(result['harmonic_mean'])} %[/bold]")
    for name, control in more.get("controls", {}).items():
        for space, values in control.items():
            console.print(f"{escape(space)}, {name.replace('_', ' ')} instead: {task_of(adapter).lines(values)}")
    for key, title in {"task_mean": "mean over tasks", **MEANS}.items():
        if result.get(key) is not None:
            console.print(f"{title}: [bold]{percent(result[key])} %[/bold]")
    for space, reason in spaces.unanswered.items():
        console.print(f"[yellow]{escape(space)}[/yellow]: {escape(reason)}")
    show_more(more, console)
    console.print(f"written to {path}", markup=False, soft_wrap=True)
    return result
