"""Further data of a recipe (`evaluate.others`, `evaluate.shift`), from its sections to what is measured."""

from __future__ import annotations

import copy
import dataclasses
import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .callbacks.cross_dataset import Target, other_target
from .callbacks.shift import shift_target
from .errors import RecipeError
from .features import CachedFeatures

if TYPE_CHECKING:
    from .backbone import FrozenClip
    from .classes import ClassSet
    from .recipe import Recipe


def load_targets(recipe: Recipe, trained: ClassSet) -> list[Target]:
    """List the further data of a recipe; nothing is decoded yet.

    Args:
        recipe: the recipe.
        trained: the classes trained on, which `shift` is about.

    Raises:
        LimpetError, DataError: data that cannot be used, have no test images or none of the trained classes.
    """
    targets = []
    for name, config in recipe.evaluate.others.items():
        data = _load("others", name, config, recipe.seed)
        targets.append(other_target(name, data, getattr(data, "templates", None) or recipe.classes.templates))
    for name, config in recipe.evaluate.shift.items():
        data = _load("shift", name, config, recipe.seed)
        targets.append(shift_target(name, data, trained, config.candidates))
    for target in targets:
        if not target.data.samples["test"]:
            raise RecipeError(f"{target.space} has no test images of classes that were trained on: {target.note}")
    return targets


def _load(kind: str, name: str, config: Any, seed: int) -> Any:
    """A data module whose test split is what is to be measured."""
    module = importlib.import_module("limpet.datamodules")
    data = module.load(dataclasses.replace(config, shots="all"), seed)  # nothing is trained, so nothing is drawn
    data.setup()
    if config.images == "all":
        data = copy.copy(data)
        every = [sample for samples in data.samples.values() for sample in samples]
        data.samples = {"train": [], "val": [], "test": sorted(every, key=lambda sample: sample.index)}
    if not data.samples["test"]:
        raise RecipeError(
            f"There are no test images in evaluate.{kind}.{name}. To test on all of its images: "
            f"evaluate.{kind}.{name}.images=all"
        )
    return data


def ready(targets: Iterable[Target], backbone: FrozenClip, features: bool, seed: int) -> list[Target]:
    """Give the targets' images the backbone's transform and, for a method that reads only features, features."""
    result = []
    for target in targets:
        plain = backbone.transform(resize_mode=getattr(target.data, "resize_mode", None))
        target.data.set_transforms(plain, plain)
        data = CachedFeatures(target.data, backbone, None, seed) if features else target.data
        result.append(dataclasses.replace(target, data=data))
    return result


def facts(targets: Iterable[Target]) -> dict[str, dict[str, Any]]:
    """What was measured on, for metrics.json: space -> data module, images and split hash."""
    return {
        target.space: {
            "data": target.data.config.name,
            "images": len(target.data.samples["test"]),
            "split_hash": target.data.manifest()["hash"],
        }
        for target in targets
    }
