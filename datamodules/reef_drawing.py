"""Drawing reef scenes: one fish or several over water, clear or murky, with their boxes."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from .errors import DataError, nearest
from .fewshot import digest
from .reef_bodies import draw_fish
from .reef_fish import Pose
from .reef_species import NAMES, SPECIES, Species
from .reef_water import draw_bubbles, draw_water, make_murky

VERSION = 1  # part of every content key: raise it when a drawing changes
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Scene:
    """A drawn image and what is on it.

    Attributes:
        image: RGB, size x size.
        species: name of each fish.
        boxes: left, top, right, bottom of each fish in pixels, cut at the image's border.
        facing: "left" or "right" for each fish.
    """

    image: Image.Image
    species: tuple[str, ...]
    boxes: tuple[Box, ...]
    facing: tuple[str, ...]


def find_species(name: str | int | Species) -> Species:
    """A species by name or number; one of your own stays as it is.

    Raises:
        DataError: there is none.
    """
    if isinstance(name, Species):
        return name
    if isinstance(name, int):
        if 0 <= name < len(SPECIES):
            return SPECIES[name]
        raise DataError(f"There is no species {name}; they are numbered 0 to {len(SPECIES) - 1}.")
    if name in NAMES:
        return SPECIES[NAMES.index(name)]
    raise DataError(f"There is no species '{name}'.{nearest(name, NAMES)}")


def draw_scene(
    species: str | int | Species | Sequence[str | int | Species],
    seed: int | str = 0,
    *,
    count: int = 1,
    size: int = 64,
    facing: str | None = None,
    length: float | None = None,
    murkiness: float = 0.0,
) -> Scene:
    """Draw a scene; the same arguments always give the same scene.

    Args:
        species: name, number or description, or one for each fish in turn.
        seed: chooses poses, colours and background; the same for every murkiness and size.
        count: number of fish (0 gives empty water); several are kept apart where there is room.
        size: height and width in pixels, 16 to 1024.
        facing: "left", "right", or None for either.
        length: length of the fish as a share of the width, or None to vary it.
        murkiness: 0 clear to 1 very murky.

    Raises:
        DataError: unknown species, or an argument out of range.
    """
    fits = 16 <= size <= 1024 and count >= 0 and 0 <= murkiness <= 1 and (length is None or 0 < length <= 1)
    if not fits or facing not in (None, "left", "right"):
        raise DataError(
            "A scene needs size 16-1024, count 0 or more, murkiness 0-1, length above 0 and at most 1, and facing left or "
            f"right; got size {size}, count {count}, murkiness {murkiness}, length {length}, facing {facing}."
        )
    wanted = [species] if isinstance(species, str | int | Species) else list(species)
    kinds = [find_species(name) for name in wanted]
    rng = random.Random(digest("reef", VERSION, seed, *(kind.name for kind in kinds), count))
    factor = 4 if size <= 80 else 3 if size <= 128 else 2
    side = size * factor
    canvas = draw_water(side, rng)
    boxes: list[Box] = []
    names, facings = [], []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        pose = _free_pose(count, boxes, side, rng, facing=facing, length=length)
        left, top, right, bottom = draw_fish(canvas, kind, pose, rng)
        boxes.append((max(0.0, left), max(0.0, top), min(float(side), right), min(float(side), bottom)))
        names.append(kind.name)
        facings.append("left" if pose.left else "right")
    draw_bubbles(canvas, rng)
    image = make_murky(canvas.reduce(factor), murkiness, rng)
    scaled = tuple((b[0] / factor, b[1] / factor, b[2] / factor, b[3] / factor) for b in boxes)
    return Scene(image, tuple(names), scaled, tuple(facings))


def _free_pose(
    count: int,
    boxes: Sequence[Box],
    side: int,
    rng: random.Random,
    *,
    facing: str | None,
    length: float | None,
) -> Pose:
    """A pose whose centre is far from the others; the best of some tries."""
    share = rng.uniform(0.5, 0.84) / max(1.0, math.sqrt(count) * 1.02)
    share = length if length is not None else share
    scale = share * side / 2.15
    margin = min(0.5, share * 0.46) * side
    others = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in boxes]
    best, far = (side / 2, side / 2), -1.0
    for _ in range(24 if others else 1):
        x, y = rng.uniform(margin, side - margin), rng.uniform(margin, side - margin)
        distance = min((math.hypot((x - ox) * 0.8, (y - oy) * 1.25) for ox, oy in others), default=0.0)
        if distance > far:
            best, far = (x, y), distance
    left = rng.random() < 0.5 if facing is None else facing == "left"
    return Pose(best[0], best[1], scale, math.radians(rng.gauss(0, 13)), left)
