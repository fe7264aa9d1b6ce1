"""Patterns on a fish's flank, as polygons in the fish's own coordinates; the body clips them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .reef_shapes import Point, Shape
from .reef_species import Colour, Species

_TURN = [(math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, 11)[:-1].tolist()]
_ARC = [(math.cos(a), math.sin(a)) for a in np.linspace(-1.3, 1.3, 6).tolist()]


@dataclass(frozen=True)
class Mark:
    """One filled polygon of a pattern."""

    points: Sequence[Point]
    colour: Colour


def marks(species: Species, shape: Shape, rng: random.Random) -> list[Mark]:
    """The pattern of one fish, in drawing order; `rng` shifts it a little."""
    return _PATTERNS[species.pattern](species, shape, rng)


def _profile(shape: Shape, xs: Sequence[float]) -> tuple[list[float], list[float]]:
    """Heights of back and belly at some positions along the fish."""
    sides = []
    for side in (shape.upper, shape.lower):
        ordered = sorted(side)
        sides.append([float(y) for y in np.interp(xs, [x for x, _ in ordered], [y for _, y in ordered])])
    return sides[0], sides[1]


def _along(shape: Shape, low: float, high: float, start: float = 1.3, end: float = -1.1) -> list[Point]:
    """The part of the flank between two relative heights (-1 belly, 1 back)."""
    xs = [float(x) for x in np.linspace(start, end, 18)]
    back, belly = _profile(shape, xs)

    def height(i: int, relative: float) -> float:
        middle, half = (back[i] + belly[i]) / 2, (back[i] - belly[i]) / 2
        return middle + relative * half

    top = [(x, height(i, high)) for i, x in enumerate(xs)]
    return top + [(x, height(i, low)) for i, x in reversed(list(enumerate(xs)))]


def _plain(species: Species, shape: Shape, rng: random.Random) -> list[Mark]:
    return []


def _stripes(species: Species, shape: Shape, rng: random.Random) -> list[Mark]:
    step, shift = 2 / species.number, rng.uniform(-0.06, 0.06)
    centres = [-1 + step * (i + 0.5) + shift for i in range(species.number)]
    half = species.width * step / 2
    return [Mark(_along(shape, c - half, c + half, start=0.5), species.mark) for c in centres]


def _bands(species: Species, shape: Shape, rng: random.Random) -> list[Mark]:
    first, last = 0.62, -0.62
    step = (first - last) / max(1, species.number - 1)
    shift, result = rng.uniform(-0.04, 0.04), []
    for i in range(species.number):
        centre, half = first - step * i + shift, species.width * step / 2
        if species.number <= 3:
            half *= 1 - 0.2 * i
        if species.edge is not None:
            result.append(Mark(_band(centre, half + 0.035), species.edge))
        result.append(Mark(_band(centre, half), species.mark))
    return result


def _band(centre: float, half: float, bow: float = 0.07) -> list[Point]:
    heights = [float(y) for y in np.linspace(-1.3, 1.3, 11)]
    middles = [centre - bow * math.cos(y * 2.2) + bow for y in heights]
    return [(m - half, y) for m, y in zip(middles, heights, strict=True)] + [
        (m + half, y) for m, y in reversed(list(zip(middles, heights, strict=True)))
    ]


def _spots(species: Species, shape: Shape, rng: random.Random) -> list[Mark]:
    top, bottom = max(y for _, y in shape.upper), min(y for _, y in shape.lower)
    step = (top - bottom) / species.number
    radius = step * species.width * 0.75
    result, row, y = [], 0, bottom + step / 2
    while y < top:
        x = -0.8 + (row % 2) * step / 2
        while x < 0.95:
            jitter = rng.uniform(-0.18, 0.18) * step, rng.uniform(-0.18, 0.18) * step
            result.append(
                Mark(_disc(x + jitter[0], y + jitter[1], radius * rng.uniform(0.75, 1.2)), species.mark)
            )
            x += step
        y += step * 0.86
        row += 1
    return result


def _disc(x: float, y: float, radius: float, stretch: float = 1.0) -> list[Point]:
    return [(x + stretch * radius * c, y + radius * s) for c, s in _TURN]


def _rear(species: Species, shape: Shape, rng: random.Random) -> list[Mark]:
    edge = rng.uniform(-0.12, 0.06)
    teeth = [(edge + (0.07 if i % 2 else -0.07), y) for i, y in enumerate(np.linspace(-1, 1, 17).tolist())]
    return [Mark([*teeth, (-1.5, 1.0), (-1.5, -1.0)], species.mark)]


def _back(species: Species, shape: Shape, rng: random.Random) -> list[Mark]:
    low = 1 - 2 * species.width + rng.uniform(-0.05, 0.05)
    low = min(low, 0.35)
    return [Mark(_along(shape, low, 1.2), species.mark)]


def _scales(species: Species, shape: Shape, rng: random.Random) -> list[Mark]:
    result = []
    for row in range(9):
        for column in range(14):
            x, y = 0.42 - 0.1 * column - 0.05 * (row % 2), -0.4 + 0.1 * row
            outer = [(x - 0.055 * c, y + 0.055 * s) for c, s in _ARC]
            inner = [(x - 0.03 * c + 0.005, y + 0.045 * s) for c, s in reversed(_ARC)]
            result.append(Mark([*outer, *inner], species.mark))
    return result


def _palette(species: Species, shape: Shape, rng: random.Random) -> list[Mark]:
    outer = [(0.72, 0.14), (0.5, 0.34), (0.1, 0.42), (-0.4, 0.36), (-0.8, 0.1), (-0.8, -0.1), (-0.5, -0.14)]
    outer += [(-0.2, -0.26), (0.1, -0.2), (0.2, 0.0), (0.44, 0.06)]
    hole = _disc(-0.12 + rng.uniform(-0.03, 0.03), 0.08, 0.11, 2.0)
    wedge = [(-0.52, 0.0), (-1.0, 0.12), (-1.0, -0.12)]
    return [Mark(outer, species.mark), Mark(hole, species.body), Mark(wedge, species.tail or species.body)]


def _slanted(species: Species, shape: Shape, rng: random.Random) -> list[Mark]:
    step, shift = 1.9 / species.number, rng.uniform(-0.05, 0.05)
    result = []
    for i in range(species.number):
        x, half = 1.0 - step * i + shift, species.width * step / 2
        line = [(x + 0.5 * y + 0.12 * math.sin(3 * y), y) for y in np.linspace(-0.7, 0.7, 9).tolist()]
        result.append(
            Mark([(a - half, b) for a, b in line] + [(a + half, b) for a, b in reversed(line)], species.mark)
        )
    return result


def _bows(species: Species, shape: Shape, rng: random.Random) -> list[Mark]:
    centre, result = -0.62 + rng.uniform(-0.04, 0.04), []
    step = 1.35 / species.number
    for i in range(species.number):
        radius, half = step * (i + 0.6), species.width * step / 2
        angles = np.linspace(0, 2 * math.pi, 25).tolist()
        outer = [(centre + (radius + half) * math.cos(a), (radius + half) * math.sin(a)) for a in angles]
        inner = [
            (centre + (radius - half) * math.cos(a), (radius - half) * math.sin(a)) for a in reversed(angles)
        ]
        result.append(Mark(outer + inner, species.mark))
    return result


def _eyespot(species: Species, shape: Shape, rng: random.Random) -> list[Mark]:
    x, y = -0.3 + rng.uniform(-0.05, 0.05), 0.05
    return [Mark(_disc(x, y, 0.2), species.edge or species.mark), Mark(_disc(x, y, 0.13), species.mark)]


_PATTERNS: dict[str, Callable[[Species, Shape, random.Random], list[Mark]]] = {
    "plain": _plain,
    "stripes": _stripes,
    "bands": _bands,
    "spots": _spots,
    "rear": _rear,
    "back": _back,
    "scales": _scales,
    "palette": _palette,
    "slanted": _slanted,
    "bows": _bows,
    "eyespot": _eyespot,
}
