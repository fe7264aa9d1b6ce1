"""Drawn shapes as a classification data set: by combination of colour and shape, or by one attribute."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from PIL import Image

from .base import DataModule
from .configs import ShapesConfig
from .errors import DataError, nearest
from .fewshot import digest
from .listing import Listing, Sample
from .pretraining_sources import held_out, place_words
from .shapes_drawing import (
    COLOURS,
    FACING,
    NUMBERS,
    PATTERNS,
    POSITIONS,
    SHAPES,
    SIZES,
    VERSION,
    draw_shapes,
    random_scene,
)

COMBINATIONS = ("all", "seen", "held_out")
# Of each attribute: the words of its values, and what a scene needs to have that value.
ATTRIBUTES: dict[str, dict[str, dict[str, Any]]] = {
    "combination": {f"{c} {s}": {"colour": c, "shape": s, "count": 1} for c in COLOURS for s in SHAPES},
    "colour": {f"{c} thing": {"colour": c} for c in COLOURS},
    "shape": {s: {"shape": s, "count": 1} for s in SHAPES},
    "pattern": {f"{p} thing": {"pattern": p} for p in PATTERNS},
    "count": {f"{n} things" if i else "one thing": {"count": i + 1} for i, n in enumerate(NUMBERS)},
    "size": {f"{s} thing": {"size": s, "count": 1} for s in SIZES},
    "position": {f"thing {place_words(p)}": {"position": p, "count": 1, "size": None} for p in POSITIONS},
    "facing": {f"thing facing {f}": {"facing": f, "count": 1} for f in FACING},
}


class ShapesDataModule(DataModule):
    """Scenes whose classes are the values of an attribute; everything else about a scene is random.

    With `combinations: held_out`, images show only combinations of colour and shape kept from the pretraining of
    limpet-tiny, while all 120 combinations stay answers to choose from.
    """

    config: ShapesConfig

    def __init__(self, config: ShapesConfig, seed: int) -> None:
        super().__init__(config, seed)
        for key, value, known in (
            ("attribute", config.attribute, tuple(ATTRIBUTES)),
            ("combinations", config.combinations, COMBINATIONS),
        ):
            if value not in known:
                raise DataError(f"data.{key} is '{value}'; known are {', '.join(known)}.{nearest(value, known)}")
        if not 32 <= config.size <= 224:
            raise DataError(f"data.size is {config.size}; drawn shapes are 32 to 224 pixels wide.")
        if min(config.train, config.val, config.test) < 0:
            raise DataError("data.train, data.val and data.test count images and cannot be negative.")

    def listing(self) -> Listing:
        """Every drawing there is, train before val before test."""
        config = self.config
        names = list(ATTRIBUTES[config.attribute])
        numbers = (("train", config.train), ("val", config.val), ("test", config.test))
        samples, splits = [], []
        for label, (name, fixed) in enumerate(ATTRIBUTES[config.attribute].items()):
            if config.attribute == "combination" and not self._wanted(fixed["colour"], fixed["shape"]):
                continue
            for number, split in enumerate(split for split, count in numbers for _ in range(count)):
                samples.append(Sample(f"{name}/{number:05d}", label, extra={"number": number, "fixed": fixed}))
                splits.append(split)
        return Listing(names, {name: [name] for name in names}, samples, list(splits))

    def _wanted(self, colour: str, shape: str) -> bool:
        choice = self.config.combinations
        return choice == "all" or held_out(colour, shape) == (choice == "held_out")

    @property
    def reader(self) -> Callable[[Sample], Image.Image]:
        """Draws the sample."""
        return partial(_draw, config=self.config)

    def content_key(self, sample: Sample) -> str:
        """SHA-256 (hex) of the drawing's parameters and version."""
        config = self.config
        parameters = ("shapes", VERSION, config.drawing_seed, config.size, config.attribute, config.combinations, sample.path)
        return hashlib.sha256("\0".join(map(str, parameters)).encode()).hexdigest()


def _draw(sample: Sample, config: ShapesConfig) -> Image.Image:
    """Draw one sample as an RGB image."""
    seed = f"{config.drawing_seed}/{sample.path}"
    rng = random.Random(digest("shapes scene", seed))
    avoid = None
    if config.combinations != "all" and config.attribute != "combination":
        unwanted = config.combinations == "seen"
        avoid = partial(_is_held_out, wanted=unwanted)
    fixed = dict(sample.extra["fixed"])
    scene = random_scene(rng, avoid, **fixed)
    return draw_shapes(scene, seed, config.size)


def _is_held_out(colour: str, shape: str, wanted: bool) -> bool:
    return held_out(colour, shape) == wanted


