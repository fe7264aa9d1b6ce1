"""Drawn scenes with several fish, each of another species, and their exact boxes; one of them is asked about."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from functools import partial

from PIL import Image

from .base import DataModule
from .configs import ReefScenesConfig
from .errors import DataError
from .fewshot import digest
from .listing import Listing, Sample
from .reef_drawing import VERSION, draw_scene
from .reef_species import NAMES


class ReefScenesDataModule(DataModule):
    """A sample is a scene and one of its fish: the label is that fish's species, `boxes` its box, `caption` its name.

    `candidates` are the boxes of all fish in the scene, of which `target` is right. A scene is a function of (drawing
    seed, species, split, number).
    """

    config: ReefScenesConfig

    def __init__(self, config: ReefScenesConfig, seed: int) -> None:
        super().__init__(config, seed)
        if not 64 <= config.size <= 224:
            raise DataError(f"data.size is {config.size}; drawn scenes are 64 to 224 pixels wide.")
        if not 2 <= config.species <= len(NAMES):
            raise DataError(f"data.species is {config.species}; choose 2 to {len(NAMES)}.")
        if not 2 <= config.fish <= min(8, config.species):
            raise DataError(f"data.fish is {config.fish}; choose 2 to {min(8, config.species)} fish, each of another species.")
        if min(config.train, config.val, config.test) < 0:
            raise DataError("data.train, data.val and data.test count scenes and cannot be negative.")

    def listing(self) -> Listing:
        """Every scene there is, train before val before test."""
        config = self.config
        names = list(NAMES[: config.species])
        samples: list[Sample] = []
        splits: list[str | None] = []
        for label, name in enumerate(names):
            for split, count in (("train", config.train), ("val", config.val), ("test", config.test)):
                for number in range(count):  # numbered by split: more training scenes leave the test as it is
                    path = f"{name}/{split}/{number:05d}"
                    rng = random.Random(digest("reef scenes", config.drawing_seed, path))
                    others = rng.sample([other for other in names if other != name], config.fish - 1)
                    place = rng.randrange(config.fish)
                    fish = (*others[:place], name, *others[place:])
                    extra = {"species": name, "fish": fish, "place": place, "caption": name}
                    samples.append(Sample(path, label, extra=extra))
                    splits.append(split)
        offers = ("boxes", "crops", "candidates", "candidate_crops", "target", "caption")
        return Listing(names, {name: [name] for name in names}, samples, splits, offers=offers)

    @property
    def reader(self) -> Callable[[Sample], Image.Image]:
        """Draws the sample."""
        return partial(draw_sample, size=self.config.size, drawing_seed=self.config.drawing_seed)

    def content_key(self, sample: Sample) -> str:
        """SHA-256 (hex) of the scene's parameters and version."""
        config = self.config
        parameters = ("reef scenes", VERSION, config.drawing_seed, config.size, config.species, config.fish, sample.path)
        return hashlib.sha256("\0".join(map(str, parameters)).encode()).hexdigest()


def draw_sample(sample: Sample, size: int, drawing_seed: int) -> Image.Image:
    """Draw one scene as an RGB image of size x size; its `info` holds `candidates` and `boxes`, in pixels."""
    fish, place = sample.extra["fish"], int(sample.extra["place"])
    scene = draw_scene(fish, f"scenes/{drawing_seed}/{sample.path}", count=len(fish), size=size)
    scene.image.info["candidates"] = scene.boxes
    scene.image.info["boxes"] = (scene.boxes[place],)
    return scene.image
