"""Drawn fish, made on the fly: no files, the same images everywhere."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from functools import partial

from PIL import Image

from .base import DataModule
from .configs import ReefConfig
from .errors import DataError, nearest
from .fewshot import digest
from .listing import Listing, Sample
from .reef_drawing import VERSION, draw_scene
from .reef_species import NAMES
from .reef_water import make_deep

LOOKS = {"clear": ("clear",), "murky": ("murky",), "deep": ("deep",), "both": ("clear", "murky")}


class ReefDataModule(DataModule):
    """Species whose names describe them, each with a pool of drawings; the domain is the look of the water.

    A drawing is a function of (drawing seed, species, number); all looks show the same fish.
    """

    config: ReefConfig

    def __init__(self, config: ReefConfig, seed: int) -> None:
        super().__init__(config, seed)
        if config.look not in LOOKS:
            raise DataError(
                f"data.look is '{config.look}'; known are {', '.join(LOOKS)}.{nearest(config.look, LOOKS)}"
            )
        if not 64 <= config.size <= 224:
            raise DataError(f"data.size is {config.size}; drawn fish are 64 to 224 pixels wide.")
        if not 2 <= config.species <= len(NAMES):
            raise DataError(f"data.species is {config.species}; choose 2 to {len(NAMES)}.")
        if min(config.train, config.val, config.test) < 0:
            raise DataError("data.train, data.val and data.test count images and cannot be negative.")

    def listing(self) -> Listing:
        """Every drawing there is, train before val before test."""
        config = self.config
        names = list(NAMES[: config.species])
        given = [
            s
            for s, n in (("train", config.train), ("val", config.val), ("test", config.test))
            for _ in range(n)
        ]
        samples: list[Sample] = []
        splits: list[str | None] = []
        for label, name in enumerate(names):
            for number, split in enumerate(given):
                for look in LOOKS[config.look]:
                    path = f"{look}/{name}/{number:05d}"
                    samples.append(
                        Sample(path, label, domain=look, extra={"species": name, "number": number})
                    )
                    splits.append(split)
        texts = {name: [name] for name in names}
        return Listing(names, texts, samples, splits, offers=("boxes", "crops"))

    @property
    def reader(self) -> Callable[[Sample], Image.Image]:
        """Draws the sample."""
        return partial(draw_sample, size=self.config.size, drawing_seed=self.config.drawing_seed)

    def content_key(self, sample: Sample) -> str:
        """SHA-256 (hex) of the drawing's parameters and version."""
        parameters = ("reef", VERSION, self.config.drawing_seed, self.config.size, sample.path)
        return hashlib.sha256("\0".join(map(str, parameters)).encode()).hexdigest()


def draw_sample(sample: Sample, size: int, drawing_seed: int) -> Image.Image:
    """Draw one sample of the reef as an RGB image of size x size."""
    seed = f"{drawing_seed}/{sample.extra['number']}"
    murkiness = 0.0
    if sample.domain == "murky":
        murkiness = 0.65 + 0.35 * digest("murkiness", seed)[0] / 255
    scene = draw_scene(str(sample.extra["species"]), seed, size=size, murkiness=murkiness)
    image = make_deep(scene.image, random.Random(digest("deep", seed))) if sample.domain == "deep" else scene.image
    image.info["boxes"] = scene.boxes
    return image
