"""From a recipe's stream (or `init_from`) to sessions: their data, their classes, and what they start from."""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import artifact
from .classes import ClassSet
from .continual import make
from .errors import RecipeError
from .runs import resolve_run

if TYPE_CHECKING:
    from .adapter import Adapter
    from .backbone import FrozenClip
    from .backbone_spec import BackboneSpec
    from .continual import Regulariser
    from .recipe import Recipe


@dataclass
class Plan:
    """The sessions of a run.

    Attributes:
        stream: what the data modules say of them.
        known: classes of the artefact that is continued, in its order; None where nothing is.
        union: every class of the stream with its texts.
        templates: sentences around class names.
    """

    stream: Any
    known: ClassSet | None
    union: ClassSet
    templates: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.stream)

    def own(self, number: int) -> ClassSet:
        """The classes of a session."""
        session = self.stream.sessions[number]
        if self.stream.by != "tasks":
            return self.union.only(session.classes)
        texts = {name: tuple(session.data.class_texts[name]) for name in session.classes}
        return ClassSet(names=session.classes, texts=texts, templates=self.templates)

    def seen(self, number: int) -> ClassSet:
        """All classes so far: of the artefact that is continued, then of the sessions up to `number`."""
        return self._together(self.stream.classes(number + 1))

    def candidates(self, after: int, session: int) -> ClassSet:
        """The classes an image of `session` may be, asked after session `after`."""
        if self.stream.by == "tasks":
            return self.own(session)
        return self._together(self.stream.candidates(after, session))

    def _together(self, names: tuple[str, ...]) -> ClassSet:
        if self.known is None:
            return self.union.only(names)
        new = [name for name in names if name not in self.known]
        both = dataclasses.replace(self.known, templates=self.templates)
        return both.extended(new, {name: self.union.texts[name] for name in new})


def is_continual(recipe: Recipe) -> bool:
    """Whether a recipe has sessions: a stream, or an artefact to continue from."""
    return bool(recipe.stream.by) or recipe.init_from is not None


def check_recipe(recipe: Recipe) -> None:
    """Refuse what cannot go together, before anything is loaded.

    Raises:
        RecipeError: a regulariser with nothing to remember; several devices.
    """
    name = recipe.continual.name
    if not is_continual(recipe):
        if name != "none":
            raise RecipeError(
                f"continual is '{name}', but there is nothing to forget: it goes with a stream (stream.by=classes "
                "stream.increment=2) or with init_from=RUN."
            )
        return
    if name == "replay" and not recipe.stream.by:
        raise RecipeError("continual=replay keeps images of earlier sessions, and a single one has none: use lwf or vr_lwf.")
    if recipe.protocol != "all":
        raise RecipeError(f"init_from continues with new classes under protocol all, not {recipe.protocol}.")
    if recipe.trainer.devices * recipe.trainer.num_nodes > 1:
        raise RecipeError("A stream of sessions runs on one device: set trainer.devices=1 trainer.num_nodes=1.")
    if recipe.stream.by == "tasks" and (recipe.classes.include or recipe.classes.first or recipe.classes.texts):
        raise RecipeError("stream.by=tasks takes classes as the data of each task name them: remove classes.include, first, texts.")
    if recipe.evaluate.shift:
        raise RecipeError("evaluate.shift is about the trained classes, which change in a stream: use evaluate.others.")
    if recipe.evaluate.wordings or recipe.evaluate.task:
        raise RecipeError(
            "evaluate.wordings and evaluate.task are not measured after every session of a stream: remove them, and give them "
            "to `limpet evaluate RUN` afterwards."
        )


def pinned(recipe: Recipe) -> Path | None:
    """The artefact that a recipe continues from; from then on the recipe names exactly that version.

    Raises:
        LimpetError: there is no such run or version.
    """
    if recipe.init_from is None:
        return None
    word, _, version = recipe.init_from.rpartition("@v") if "@v" in recipe.init_from else (recipe.init_from, "", "")
    if "@v" in recipe.init_from and not version.isdecimal():
        raise RecipeError(f"init_from is '{recipe.init_from}': a version is written RUN@v2.")
    path = Path(word).expanduser()
    if not (path / artifact.INFO).is_file():
        run = resolve_run(word, recipe.run.dir)
        path = artifact.locate(run / "adapter", int(version) if version else None)
    recipe.init_from = str(path.resolve())
    return path


def make_plan(recipe: Recipe, data: Any, classes: ClassSet, known: ClassSet | None) -> Plan:
    """Cut the data into sessions; without a stream they are one."""
    module = importlib.import_module("limpet.datamodules.stream")
    if not recipe.stream.by:
        stream = module.Stream("classes", [module.StreamSession("new", data)])
    else:
        stream = module.make_stream(
            recipe.stream, data, lambda name: load_task(recipe, name), least=1 if recipe.init_from else 2
        )
    if recipe.continual.name == "replay" and len(stream) == 1:
        raise RecipeError("continual=replay keeps images of earlier sessions, and a single one has none: use lwf or vr_lwf.")
    templates = tuple(recipe.classes.templates)
    if recipe.stream.by == "tasks":
        texts: dict[str, tuple[str, ...]] = {}
        for session in stream.sessions:
            for name in session.classes:
                texts.setdefault(name, tuple(session.data.class_texts[name]))
        classes = ClassSet(names=tuple(texts), texts=texts, templates=templates)
    return Plan(stream, known, classes, templates)


def load_task(recipe: Recipe, name: str) -> Any:
    """The data module of a task, set up."""
    data = importlib.import_module("limpet.datamodules").load(recipe.stream.tasks[name], recipe.seed)
    data.setup()
    data.evaluation_batch = recipe.evaluate.batch_size
    return data


def continued(path: Path, recipe: Recipe, method: type[Adapter], backbone: FrozenClip) -> Adapter:
    """The adapter to continue from, with the settings it was fitted with.

    Raises:
        RecipeError: it is of another method than the recipe asks for.
    """
    adapter = artifact.load(path, backbone)
    if type(adapter) is not method:
        raise RecipeError(
            f"init_from names an adapter of '{adapter.name}', and the recipe asks for '{recipe.method['name']}': "
            f"continue with method={adapter.name}."
        )
    return adapter


def known_classes(path: Path | None) -> ClassSet | None:
    """The classes of the artefact that is continued."""
    return None if path is None else ClassSet.from_dict(artifact.load_info(path)["classes"])


def check_method(method: type[Adapter], config: Any, spec: BackboneSpec) -> None:
    """Refuse a method that cannot take further classes.

    Raises:
        RecipeError: says what can.
    """
    if method.task != "classification":
        raise RecipeError(
            f"A stream brings classes, and '{method.variant(config)}' is a method of {method.task}: use one that classifies."
        )
    if method.trainable(config, spec) and method.new_class(config, spec) == "images":
        raise RecipeError(
            f"'{method.variant(config)}' with these settings has tensors for each class that cannot grow, so that it cannot "
            "take the classes of a further session. Of CoOp use method.class_specific=false."
        )


def alone(recipe: Recipe, plan: Plan, adapter: Adapter, regulariser: Regulariser) -> list[str]:
    """A sentence where sessions bring one class and the loss chooses among the classes of the session: its gradient is zero."""
    config, spec = adapter.config, adapter.backbone.spec
    wide = recipe.stream.candidates == "seen" or regulariser.sees_all or adapter.per_class(config, spec)
    if (wide and plan.stream.by != "tasks") or not adapter.trainable(config, spec):
        return []
    single = [session.name for session in plan.stream.sessions if len(session.classes) == 1]
    if not single:
        return []
    which = f"Session {single[0]} has" if len(single) == 1 else f"{len(single)} sessions (such as {single[0]}) have"
    later = plan.known is not None or single != [plan.stream.sessions[0].name]  # before a first session there are none
    help_ = " stream.candidates=seen lets the loss choose among all classes so far." if later and plan.stream.by != "tasks" else ""
    return [f"{which} one class only: a loss over classes has nothing to choose from there, and learns nothing.{help_}"]


def regulariser_of(recipe: Recipe, adapter: Adapter) -> Regulariser:
    """The regulariser of a recipe.

    Raises:
        RecipeError: it cannot act on this method.
    """
    regulariser = make(recipe.continual)
    reason = regulariser.problem(adapter)
    if reason:
        raise RecipeError(reason)
    return regulariser
