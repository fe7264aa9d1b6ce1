"""Drawn fish, some of them with a defect whose place is known exactly: for anomaly detection."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .base import DataModule
from .configs import ReefDefectsConfig
from .errors import DataError, nearest
from .fewshot import digest
from .listing import Listing, Sample
from .reef_drawing import VERSION, Box, draw_scene
from .reef_species import NAMES

DEFECTS = ("sore", "scratch", "mixed")
SORES = ((150, 24, 30), (206, 40, 44), (96, 16, 24))
_FINE = 4  # a defect is drawn so many times finer, for smooth edges


class ReefDefectsDataModule(DataModule):
    """A sample is one fish; every second test image carries a defect, training and validation images none.

    `anomalous` is 1 or 0, `defect` the mask. An image is a function of (drawing seed, species, split, number).
    """

    config: ReefDefectsConfig

    def __init__(self, config: ReefDefectsConfig, seed: int) -> None:
        super().__init__(config, seed)
        if config.defect not in DEFECTS:
            raise DataError(f"data.defect is '{config.defect}'; known are {', '.join(DEFECTS)}.{nearest(config.defect, DEFECTS)}")
        if not 64 <= config.size <= 224:
            raise DataError(f"data.size is {config.size}; drawn fish are 64 to 224 pixels wide.")
        if not 1 <= config.species <= len(NAMES):
            raise DataError(f"data.species is {config.species}; choose 1 to {len(NAMES)}.")
        if min(config.train, config.val, config.test) < 0:
            raise DataError("data.train, data.val and data.test count images and cannot be negative.")

    def listing(self) -> Listing:
        """Every image there is, train before val before test."""
        config = self.config
        names = list(NAMES[: config.species])
        samples: list[Sample] = []
        splits: list[str | None] = []
        for label, name in enumerate(names):
            for split, count in (("train", config.train), ("val", config.val), ("test", config.test)):
                for number in range(count):
                    anomalous = int(split == "test" and number % 2)
                    path = f"{name}/{split}/{number:05d}"
                    samples.append(Sample(path, label, extra={"species": name, "anomalous": anomalous}))
                    splits.append(split)
        return Listing(names, {name: [name] for name in names}, samples, splits, offers=("boxes", "crops", "anomalous", "defect"))

    @property
    def reader(self) -> Callable[[Sample], Image.Image]:
        """Draws the sample."""
        config = self.config
        return partial(draw_sample, size=config.size, drawing_seed=config.drawing_seed, defect=config.defect)

    def content_key(self, sample: Sample) -> str:
        """SHA-256 (hex) of the image's parameters and version."""
        config = self.config
        parameters = ("reef defects", VERSION, config.drawing_seed, config.size, config.defect, sample.path)
        return hashlib.sha256("\0".join(map(str, parameters)).encode()).hexdigest()


def draw_sample(sample: Sample, size: int, drawing_seed: int, defect: str) -> Image.Image:
    """Draw one fish as an RGB image of size x size; its `info` holds `boxes`, in pixels, and `defect`, a mask."""
    seed = f"defects/{drawing_seed}/{sample.path}"
    scene = draw_scene(str(sample.extra["species"]), seed, size=size, length=0.75)
    mask = np.zeros((size, size), dtype=bool)
    image = scene.image
    if sample.extra["anomalous"]:
        image, mask = damaged(image, scene.boxes[0], defect, random.Random(digest("defect", seed)))
    image.info.update(boxes=scene.boxes, defect=mask)
    return image


def damaged(image: Image.Image, box: Box, defect: str, rng: random.Random) -> tuple[Image.Image, np.ndarray[Any, Any]]:
    """Draw a defect onto the middle part of a fish, whose box is given in pixels.

    Args:
        image: the image; it stays as it is.
        box: left, top, right, bottom of the fish.
        defect: "sore" (a red patch with a dark rim), "scratch" (a pale line) or "mixed" (either).
        rng: source of the defect's form and place.

    Returns:
        The image with the defect, and its mask (H, W), true where it covers at least half a pixel.
    """
    kind = rng.choice(DEFECTS[:2]) if defect == "mixed" else defect
    left, top, right, bottom = box
    x = left + (right - left) * rng.uniform(0.35, 0.65)
    y = top + (bottom - top) * rng.uniform(0.4, 0.6)
    layer = Image.new("L", (image.width * _FINE, image.height * _FINE), 0)
    draw = ImageDraw.Draw(layer)
    colour: tuple[int, int, int]
    if kind == "sore":
        radius = image.width * rng.uniform(0.05, 0.1)
        angles = [2 * math.pi * i / 14 for i in range(14)]
        reach = [radius * rng.uniform(0.75, 1.25) for _ in angles]
        outline = [((x + r * math.cos(a)) * _FINE, (y + 0.8 * r * math.sin(a)) * _FINE) for a, r in zip(angles, reach, strict=True)]
        draw.polygon(outline, fill=255)
        colour = rng.choice(SORES[:2])
    else:
        length, angle = image.width * rng.uniform(0.16, 0.26), rng.uniform(-0.9, 0.9)
        dx, dy = length / 2 * math.cos(angle), length / 2 * math.sin(angle)
        ends = [(x - dx) * _FINE, (y - dy) * _FINE, (x + dx) * _FINE, (y + dy) * _FINE]
        draw.line(ends, fill=255, width=round(_FINE * image.width * rng.uniform(0.025, 0.04)))
        colour = (238, 232, 224)
    cover = layer.resize(image.size, Image.Resampling.BOX)
    found = Image.composite(Image.new("RGB", image.size, colour), image, cover)
    if kind == "sore":  # a darker heart
        heart = layer.resize(image.size, Image.Resampling.BOX)
        inner = Image.new("L", image.size, 0)
        radius *= 0.45
        ImageDraw.Draw(inner).ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        both = Image.fromarray(np.minimum(np.asarray(inner), np.asarray(heart)))
        found = Image.composite(Image.new("RGB", image.size, SORES[2]), found, both)
    return found, np.asarray(cover) >= 128
