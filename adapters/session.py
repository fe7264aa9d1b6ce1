"""From a recipe to objects: data, classes, backbone and adapter, checked before anything is trained."""

from __future__ import annotations

import importlib
import random
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .adapter import Adapter, config_class, find
from .backbone import FrozenClip, describe
from .backbone_spec import BackboneSpec
from .classes import ClassSet
from .errors import NeedsImages, RecipeError, nearest
from .precision import bf16_problem
from .sections import PROTOCOLS
from .seen import data_name, sentences
from .streams import (
    Plan,
    alone,
    check_method,
    check_recipe,
    continued,
    is_continual,
    known_classes,
    make_plan,
    pinned,
    regulariser_of,
)
from .transfer import load_targets
from .wordings import check as check_wordings

if TYPE_CHECKING:
    from .callbacks.cross_dataset import Target
    from .recipe import Recipe


@dataclass
class Session:
    """Everything a run is made of.

    Attributes:
        recipe: the recipe.
        data: the data module over all classes.
        classes: all classes.
        training_classes: the classes trained on (base, under base_to_new).
        backbone: the frozen CLIP.
        adapter: the adapter, set up for `training_classes`, untrained.
        notes: sentences about the data and the classes, for the plan and the results.
        targets: further data to be measured on after training.
        loggers: Lightning loggers of the training; the first is the run's own CSV log.
        plan: the sessions of a stream; None where all data come at once.
        regulariser: what is done against forgetting in them.
    """

    recipe: Recipe
    data: Any
    classes: ClassSet
    training_classes: ClassSet
    backbone: FrozenClip
    adapter: Adapter
    notes: list[str] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    loggers: list[Any] = field(default_factory=list)
    plan: Plan | None = None
    regulariser: Any = None

    @property
    def needs(self) -> str:
        """What of an image the method reads."""
        return self.adapter.needs(self.adapter.config, self.backbone.spec)

    @property
    def trainable(self) -> bool:
        """Whether gradient training is part of the method."""
        return self.adapter.trainable(self.adapter.config, self.backbone.spec)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def device_of(accelerator: str) -> torch.device:
    """Device that Lightning would choose for an accelerator name."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def prepare(recipe: Recipe) -> Session:
    """Build everything a run needs, refusing in a sentence what cannot work; cheap refusals come first.

    Raises:
        LimpetError, DataError: something of the recipe, the data or the backbone cannot be used.
    """
    if recipe.protocol not in PROTOCOLS:
        hint = nearest(recipe.protocol, PROTOCOLS)
        raise RecipeError(f"protocol is '{recipe.protocol}'.{hint} Known: {', '.join(PROTOCOLS)}.")
    if recipe.trainer.threads:
        torch.set_num_threads(recipe.trainer.threads)
    method = find(recipe.method["name"])
    config = recipe.method_config(config_class(method))
    spec = describe(recipe.backbone)
    reason = method.supports(config, spec)
    if reason:
        raise RecipeError(reason)
    check_device(recipe)
    check_recipe(recipe)
    start = pinned(recipe)
    seed_everything(recipe.seed)
    data = load_data(recipe)
    check_task(method, data)
    check_labels(method, config, spec, data)
    if recipe.protocol == "base_to_new" and method.task == "anomaly":
        raise RecipeError(
            "protocol base_to_new compares accuracies on trained and on new classes; anomaly scores have none, and nothing is "
            "trained. Use protocol=all."
        )
    classes = choose_classes(recipe, data)
    if tuple(data.class_names) != classes.names:
        data = data.restrict(classes.names)
    data.evaluation_batch = recipe.evaluate.batch_size
    training = classes.base() if recipe.protocol == "base_to_new" else classes
    plan = None
    if is_continual(recipe):
        check_method(method, config, spec)
        plan = make_plan(recipe, data, classes, known_classes(start))
        data = plan.stream.sessions[0].data if recipe.stream.by == "tasks" else data
        classes, training = plan.seen(len(plan) - 1), plan.own(0)
        for part in plan.stream.sessions:
            check_samples(method, config, spec, part.data, plan.union)
    else:
        check_samples(method, config, spec, data, training)
    if recipe.protocol == "base_to_new":
        check_new(data, classes)
    targets = load_targets(recipe, training)
    if targets and method.task != "classification":
        raise RecipeError("evaluate.other and evaluate.shift are for methods that classify images; remove them.")
    about_words = check_wordings(recipe.evaluate.wordings, classes, method.task)
    if recipe.evaluate.task is not None:
        check_retrieval(recipe, method, data)
    backbone = load_backbone(recipe, spec)
    seed_everything(recipe.seed)
    adapter = continued(start, recipe, method, backbone) if start else method(config).setup(backbone, training)
    suit(data, adapter)
    for target in targets:
        suit(target.data, adapter)
    set_transforms(data, backbone, recipe.data.augment)
    session = Session(recipe, data, classes, training, backbone, adapter, targets=targets, plan=plan)
    if plan is not None:
        session.regulariser = regulariser_of(recipe, adapter)
        plan.stream.report += alone(recipe, plan, adapter, session.regulariser)
        for part in plan.stream.sessions:
            suit(part.data, adapter)
            set_transforms(part.data, backbone, part.data.config.augment)
            part.data.evaluation_batch = recipe.evaluate.batch_size
    check_texts(session)
    notes = [target.note for target in targets if target.note]
    kind = "instructions" if adapter.task == "ordering" else "class names"
    cut = plan.stream.report if plan is not None else []
    about = [*unseen_names(backbone, classes, kind), *unread_texts(adapter, classes), *about_words, *precision_notes(recipe)]
    sections = [recipe.data, *recipe.evaluate.others.values(), *recipe.evaluate.shift.values()]
    known = sentences((backbone.spec.name, data_name(section)) for section in sections)
    session.notes = [*data.report, *cut, *known, *about, *notes]
    if len(classes) == 1 and adapter.task == "classification":
        session.notes.append(f"'{classes.names[0]}' is the only class: every answer is right, whatever is learned.")
    return session


def check_retrieval(recipe: Recipe, method: type[Adapter], data: Any) -> None:
    """Refuse retrieval with a method of another task, or without the training images or captions it is to use."""
    section = recipe.evaluate.retrieval
    if method.task != "classification":
        raise RecipeError(
            f"evaluate.task=retrieval compares images and texts in one space, and '{method.__name__}' is a method of "
            f"{method.task}. Remove it."
        )
    if section.by == "labels" and (section.whitening or section.gallery == "train") and len(data.samples["train"]) < 2:
        raise RecipeError(
            "evaluate.retrieval uses training images (whitening, or gallery: train), and there are none. Give some, or set "
            "evaluate.retrieval.whitening=false."
        )


def suit(data: Any, adapter: Adapter) -> None:
    """Let data give what the adapter asks for beside images, and bring images to size as it needs them."""
    data.ask_for(adapter.batch_keys(adapter.config, adapter.backbone.spec))
    if adapter.resize_mode is not None:
        data.resize_mode = adapter.resize_mode


def set_transforms(data: Any, backbone: FrozenClip, augment: Any = None) -> None:
    """Give data the backbone's transforms, brought to size as the data ask for; without `augment`, nothing varies."""
    mode = getattr(data, "resize_mode", None)
    train = backbone.transform(train=augment is not None, augment=augment, resize_mode=mode)
    data.set_transforms(train, backbone.transform(resize_mode=mode))


def check_task(method: type[Adapter], data: Any) -> None:
    """Refuse a method that orders on data without values, and one that classifies on data with nothing but values."""
    has_values = "value" in data.keys
    if method.task == "ordering" and not has_values:
        raise RecipeError(
            f"'{method.__name__}' orders images by a value, and data.name={data.config.name} gives none. "
            "Use data=ordering with a table that has a column of values, or data=reef_ordering."
        )
    for task, key, what, where in (
        ("referring", "candidates", "chooses among boxes", "boxes x0, y0, x1, y1 (and captions), or data=reef_scenes"),
        ("anomaly", "anomalous", "scores anomalies", "a column anomaly or mask, or data=reef_defects"),
    ):
        if method.task == task and key not in data.offers:
            raise RecipeError(
                f"'{method.__name__}' {what}, and data.name={data.config.name} gives none. Use data=table with {where}."
            )
    if method.task == "classification" and has_values:
        raise RecipeError(
            f"'{method.__name__}' classifies images, and data.name={data.config.name} gives values to order them by. "
            "Use method=ranking, ranknet or prompt_pair, or data=table for classes."
        )


def check_labels(method: type[Adapter], config: Any, spec: BackboneSpec, data: Any) -> None:
    """Refuse training on labels with data whose training batches have captions in their place."""
    unlabelled = getattr(data, "unlabelled_training", False)
    if unlabelled and method.trainable(config, spec) and "label" in method.batch_keys(config, spec):
        raise RecipeError(
            f"'{method.variant(config)}' is trained on class labels, and data.name={data.config.name} gives captions to train "
            "on. Use method=contrastive, or data with classes."
        )


def check_device(recipe: Recipe) -> None:
    """Refuse an accelerator that this machine does not have, and ways to start processes that a run does not go along with."""
    if recipe.trainer.strategy.startswith(("ddp_spawn", "ddp_fork", "ddp_notebook")):
        raise RecipeError(
            f"trainer.strategy={recipe.trainer.strategy} copies the run into other processes, which cannot be done. Use "
            "trainer.strategy=ddp, which starts them anew."
        )
    wanted = recipe.trainer.accelerator
    if wanted not in ("auto", "cpu") and device_of(wanted).type == "cpu":
        raise RecipeError(f"trainer.accelerator is '{wanted}', but PyTorch finds none on this machine. Use trainer=cpu.")


def check_texts(session: Session) -> None:
    """Ask for the longest class texts once, so that a prompt that does not fit is refused before training.

    New classes and those of further data count, too: they are asked about after it.
    """
    adapter, backbone = session.adapter, session.backbone
    if not session.trainable or adapter.task != "classification":
        return
    adapter.eval()
    for classes in (session.training_classes, session.classes, *(target.classes for target in session.targets)):
        longest = max(classes.names, key=lambda name: len(backbone.token_ids(classes.text(name))))
        with torch.no_grad(), suppress(NeedsImages), adapter.answering(classes.only([longest])):
            adapter.check_texts()


def check_new(data: Any, classes: ClassSet) -> None:
    """Refuse base-to-new without new classes, or without test images on one side."""
    base, new = classes.base(), classes.new()
    if not len(new):
        raise RecipeError(
            f"protocol base_to_new needs new classes beside the base ones; there are {len(base)} base and no new ones. "
            "Use protocol=all, or name fewer in classes.base."
        )
    tested = {classes.names[sample.label] for sample in data.samples["test"]}
    for side, part in (("base", base), ("new", new)):
        if not tested & set(part.names):
            raise RecipeError(f"None of the {len(part)} {side} classes has a test image; protocol base_to_new compares both.")


def check_samples(
    method: type[Adapter], config: Any, spec: BackboneSpec, data: Any, training: ClassSet
) -> None:
    """Refuse data with nothing to test on, or nothing to fit a method that learns from images."""
    learns = method.trainable(config, spec) or method.fit_closed_form is not Adapter.fit_closed_form
    where = getattr(data.config, "table", None) or getattr(data.config, "root", None) or data.config.name
    trained = {data.class_names[sample.label] for sample in data.samples["train"]} & set(training.names)
    if learns and not trained:
        without = "prompt_pair" if method.task == "ordering" else "zero_shot"
        given = sum(len(data.samples[split]) for split in ("val", "test"))
        raise RecipeError(
            f"There are no training images in {where}, and '{method.variant(config)}' learns from some; {given} are there to "
            f"validate and test. Give images of split train (a column, a folder, or more images), or use method={without}."
        )
    if not data.samples["test"]:
        raise RecipeError(f"There are no test images in {where}: nothing could be measured. Add some, or fewer data.shots.")


def load_data(recipe: Recipe) -> Any:
    """The data module of a recipe, set up."""
    module = importlib.import_module("limpet.datamodules")
    tasks = recipe.stream.tasks if recipe.stream.by == "tasks" else {}
    data = module.load(next(iter(tasks.values()), recipe.data), recipe.seed)
    data.setup()
    return data


def choose_classes(recipe: Recipe, data: Any) -> ClassSet:
    """Classes of the data, reduced and worded as the recipe's `classes` section says."""
    section, known = recipe.classes, list(data.class_names)
    names = list(section.include) if section.include else known
    names = names[: section.first] if section.first else names
    for key, listed in (("include", names), ("base", section.base), ("new", section.new), ("texts", section.texts)):
        for name in listed or ():
            if name not in known:
                shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
                hint = nearest(name, known)
                raise RecipeError(f"classes.{key} names '{name}', which the data do not have.{hint} Found: {shown}.")
    texts = {name: tuple(section.texts.get(name) or data.class_texts.get(name) or (name,)) for name in names}
    return ClassSet(
        names=tuple(names),
        texts=texts,
        templates=tuple(getattr(data, "templates", None) or section.templates),
        base_names=tuple(section.base or ()),
        new_names=tuple(section.new or ()),
    )


def training_precision(recipe: Recipe) -> str:
    """What Lightning is asked for: `trainer.precision`, or float32 where the CPU cannot do bfloat16."""
    wanted = recipe.trainer.precision
    bf16 = wanted == "bf16-mixed" and bf16_problem(device_of(recipe.trainer.accelerator), "trainer.precision")
    return "32-true" if bf16 else wanted


def precision_notes(recipe: Recipe) -> list[str]:
    """Sentences where the recipe asks for bfloat16 and float32 is used."""
    device = device_of(recipe.trainer.accelerator)
    asked = {"backbone.precision": recipe.backbone.precision, "trainer.precision": recipe.trainer.precision}
    notes = [bf16_problem(device, key) for key, word in asked.items() if word.startswith("bf16")]
    return [note for note in notes if note]


_loaded: dict[Any, FrozenClip] = {}


def load_backbone(recipe: Recipe, spec: BackboneSpec) -> FrozenClip:
    """The backbone of a recipe; the cells of a grid share one."""
    device = device_of(recipe.trainer.accelerator)
    key = (spec.name, spec.pretrained, spec.activation, spec.precision, str(spec.architecture), str(device))
    if key not in _loaded:
        _loaded.clear()  # one backbone in memory at a time
        config = recipe.backbone
        if config.precision == "bf16" and bf16_problem(device, "backbone.precision"):
            config = replace(config, precision="fp32")  # said in the notes of the run
        _loaded[key] = FrozenClip.load(config, device=device)
    _loaded[key].text_memory = recipe.backbone.text_memory
    return _loaded[key]


def unread_texts(adapter: Adapter, classes: ClassSet) -> list[str]:
    """A sentence where classes have several texts, and the method learns the words before one of them."""
    several = [name for name in classes.names if len(classes.texts[name]) > 1]
    if not several or not adapter.learned_tokens(adapter.classes.names[0]):
        return []
    return [
        f"{len(several)} of {len(classes)} classes have several texts; '{adapter.name}' puts its learned prompt before the first, "
        f"such as '{classes.text(several[0])}', and leaves out the others."
    ]


def unseen_names(backbone: FrozenClip, classes: ClassSet, kind: str = "class names") -> list[str]:
    """A sentence where class names (or instructions) hold tokens that the backbone never saw in training."""
    unseen = {name: backbone.unseen_tokens(classes.text(name)) for name in classes.names}
    unseen = {name: tokens for name, tokens in unseen.items() if tokens}
    if not unseen:
        return []
    first = next(iter(unseen))
    return [
        f"{len(unseen)} of {len(classes)} {kind} hold words that {backbone.spec.name} never saw, "
        f"such as '{unseen[first][0]}' in '{classes.text(first)}': its zero-shot scores mean little for them."
    ]
