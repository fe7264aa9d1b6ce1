"""Drawn fish with an exact number to order them by: how many, how large, how many stripes, how murky."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from PIL import Image

from .configs import ReefOrderingConfig
from .errors import DataError, nearest
from .fewshot import digest
from .listing import Listing, Sample
from .ordered import OrderedDataModule
from .reef_drawing import VERSION, draw_scene, find_species
from .reef_species import NAMES

STRIPED = "orange banded clownfish"


@dataclass(frozen=True)
class Attribute:
    """One thing to order by.

    Attributes:
        instruction: in words.
        low, high: range of the value.
        whole: whether it is a whole number.
    """

    instruction: str
    low: float
    high: float
    whole: bool


ATTRIBUTES = {
    "count": Attribute("Sort the images by the number of fish.", 1, 8, True),
    "size": Attribute("Sort the images by the size of the fish.", 12, 90, False),
    "stripes": Attribute("Sort the images by the number of stripes on the fish.", 1, 8, True),
    "murkiness": Attribute("Sort the images by how murky the water is.", 0, 1, False),
}


class ReefOrderingDataModule(OrderedDataModule):
    """Drawings whose value is known exactly; a drawing follows from (drawing seed, attribute, split, number).

    `count` is the number of fish, `size` the length of the fish in per cent of the width, `stripes` the number of
    bands on its body, as with the age of some fish, `murkiness` the strength of the haze.
    """

    config: ReefOrderingConfig

    def __init__(self, config: ReefOrderingConfig, seed: int) -> None:
        super().__init__(config, seed)
        for name in config.attributes:
            if name not in ATTRIBUTES:
                raise DataError(
                    f"data.attributes names '{name}'; known are {', '.join(ATTRIBUTES)}.{nearest(name, ATTRIBUTES)}"
                )
        if not config.attributes or len(set(config.attributes)) < len(config.attributes):
            raise DataError("data.attributes needs at least one attribute, and each once.")
        if not 64 <= config.size <= 224:
            raise DataError(f"data.size is {config.size}; drawn fish are 64 to 224 pixels wide.")
        if min(config.train, config.val, config.test) < 0:
            raise DataError("data.train, data.val and data.test count images and cannot be negative.")

    def listing(self) -> Listing:
        """Every drawing there is, train before val before test."""
        config = self.config
        samples: list[Sample] = []
        splits: list[str | None] = []
        for label, name in enumerate(config.attributes):
            words = {"category": name, "instruction": ATTRIBUTES[name].instruction}
            for split, count in (("train", config.train), ("val", config.val), ("test", config.test)):
                for number in range(count):  # numbered by split: more training images leave the test as it is
                    path = f"{name}/{split}/{number:05d}"
                    extra = {**words, "value": value_of(path, config.drawing_seed)}
                    samples.append(Sample(path, label, extra=extra))
                    splits.append(split)
        texts = {name: [ATTRIBUTES[name].instruction] for name in config.attributes}
        return Listing(list(config.attributes), texts, samples, splits)

    @property
    def reader(self) -> Callable[[Sample], Image.Image]:
        """Draws the sample."""
        return partial(draw_ordered, size=self.config.size, drawing_seed=self.config.drawing_seed)

    def content_key(self, sample: Sample) -> str:
        """SHA-256 (hex) of the drawing's parameters and version."""
        parameters = ("reef ordering", VERSION, self.config.drawing_seed, self.config.size, sample.path)
        return hashlib.sha256("\0".join(map(str, parameters)).encode()).hexdigest()


def value_of(path: str, drawing_seed: int) -> float:
    """The value of a drawing "attribute/split/number", uniform over the attribute's range."""
    about = ATTRIBUTES[path.partition("/")[0]]
    rng = random.Random(digest("reef ordering", drawing_seed, path))
    return float(rng.randint(int(about.low), int(about.high))) if about.whole else rng.uniform(about.low, about.high)


def draw_ordered(sample: Sample, size: int, drawing_seed: int) -> Image.Image:
    """Draw one sample as an RGB image of size x size."""
    attribute, value = str(sample.extra["category"]), float(sample.extra["value"])
    seed = f"ordering/{drawing_seed}/{sample.path}"
    species = find_species(NAMES[digest("species", seed)[0] % 16])
    if attribute == "count":
        return draw_scene(species, seed, count=int(value), size=size).image
    if attribute == "size":
        return draw_scene(species, seed, size=size, length=value / 100).image
    if attribute == "stripes":
        return draw_scene(replace(find_species(STRIPED), number=int(value)), seed, size=size, length=0.8).image
    return draw_scene(species, seed, size=size, murkiness=value).image
