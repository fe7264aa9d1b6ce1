"""Drawing one fish of a species in any pose: outline, fins, pattern, shading and eye."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from .reef_patterns import Mark, marks
from .reef_shapes import SHAPES, Point, Shape
from .reef_species import BLACK, WHITE, Colour, Species

Points = NDArray[np.float64]


@dataclass
class Pose:
    """Where a fish is on the canvas, in canvas pixels.

    Attributes:
        x, y: centre.
        scale: half the length of a fish of length 1.
        angle: tilt in radians, nose up.
        left: whether it faces left.
    """

    x: float
    y: float
    scale: float
    angle: float
    left: bool

    def __post_init__(self) -> None:
        cosine, sine = self.scale * math.cos(self.angle), self.scale * math.sin(self.angle)
        side = -1.0 if self.left else 1.0
        self._matrix = np.array([[side * cosine, -sine], [-side * sine, -cosine]])
        self._centre = np.array([self.x, self.y])

    def apply(self, points: Iterable[Sequence[float]] | Points) -> Points:
        """Bring points (n, 2) from the fish's coordinates (y up) to the canvas (y down)."""
        return np.asarray(np.asarray(points, dtype=np.float64) @ self._matrix + self._centre)


@dataclass
class Brush:
    """Draws polygons of one fish and remembers how far they reach."""

    pose: Pose
    draw: ImageDraw.ImageDraw
    corners: list[Points] = field(default_factory=list)

    def polygon(self, points: Sequence[Point] | Points, colour: Colour, line: Colour | None = None) -> None:
        """Fill a polygon and, with `line`, draw its rim."""
        placed = self.pose.apply(points)
        self.corners.append(placed)
        flat = placed.ravel().tolist()
        self.draw.polygon(flat, fill=colour)
        if line is not None:
            self.draw.line(flat + flat[:2], fill=line, width=max(2, round(self.pose.scale / 45)))

    def marks(self, pattern: Sequence[Mark]) -> None:
        """Fill many polygons, transformed in one go."""
        if not pattern:
            return
        placed = self.pose.apply([point for mark in pattern for point in mark.points]).ravel().tolist()
        start = 0
        for mark in pattern:
            end = start + 2 * len(mark.points)
            self.draw.polygon(placed[start:end], fill=mark.colour)
            start = end

    def lines(self, pairs: Sequence[tuple[Point, Point]], colour: Colour, width: float = 0.02) -> None:
        """Draw straight lines; the width is in the fish's units."""
        thickness = max(1, round(width * self.pose.scale))
        placed = self.pose.apply([point for pair in pairs for point in pair]).ravel().tolist()
        for i in range(0, len(placed), 4):
            self.draw.line(placed[i : i + 4], fill=colour, width=thickness)

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """Fill a disc."""
        (cx, cy), r = self.pose.apply([(x, y)])[0], radius * self.pose.scale
        self.draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=colour)


@cache
def _blend(steps: int) -> Points:
    """Weights of four neighbours at each step of a Catmull-Rom curve: (steps, 4)."""
    t = np.arange(steps) / steps
    weights = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3)
    return np.asarray(np.stack(weights, axis=1) / 2)


def smooth(points: Sequence[Point], steps: int = 6, closed: bool = True) -> Points:
    """A Catmull-Rom curve through the points: (n * steps, 2)."""
    p = list(points)
    p = [p[-1], *p, p[0], p[1]] if closed else [p[0], *p, p[-1], p[-1]]
    known = np.asarray(p, dtype=np.float64)
    near = np.stack([known[:-3], known[1:-2], known[2:-1], known[3:]], axis=1)
    return np.asarray((_blend(steps) @ near).reshape(-1, 2))


@cache
def _outline(kind: str) -> Points:
    shape = SHAPES[kind]
    return smooth([*shape.upper, *reversed(shape.lower)])


def darker(colour: Colour, share: float = 0.6) -> Colour:
    """The colour times a share of its brightness."""
    return (round(colour[0] * share), round(colour[1] * share), round(colour[2] * share))


def mixed(one: Colour, other: Colour, share: float) -> Colour:
    """A colour between two; share 0 gives the first."""
    r, g, b = (round(a + (c - a) * share) for a, c in zip(one, other, strict=True))
    return (r, g, b)


def jittered(colour: Colour, rng: random.Random, amount: float) -> Colour:
    """The colour a little brighter or darker and a little off its hue."""
    light = 1 + rng.uniform(-amount, amount)
    r, g, b = (max(0, min(255, round(c * light + rng.uniform(-60, 60) * amount))) for c in colour)
    return (r, g, b)


def draw_side(canvas: Image.Image, species: Species, pose: Pose, rng: random.Random) -> Brush:
    """Draw a fish from its side: tail and fins, body with pattern and shading, then face."""
    shape = SHAPES[species.kind]
    pose = Pose(pose.x, pose.y, pose.scale * shape.length, pose.angle, pose.left)
    brush = Brush(pose, ImageDraw.Draw(canvas))
    body, fin = jittered(species.body, rng, 0.1), jittered(species.fin, rng, 0.1)
    tail = jittered(species.tail or species.fin, rng, 0.08)
    swing = rng.uniform(-0.1, 0.1)
    if "spines" in species.extra:
        _spines(brush, species, rng)
    draw_fin(brush, [(x, y + swing * max(0.0, -x - 0.7) * 2) for x, y in shape.tail], tail, (-0.6, 0.0))
    for outline in shape.fins:
        middle = sum(x for x, _ in outline) / len(outline)
        draw_fin(brush, outline, fin, (middle + 0.25, 0.0))
    outline_points = _outline(species.kind)
    brush.corners.append(pose.apply(outline_points))
    draw_body(
        canvas, brush, outline_points, body, pattern=marks(species, shape, rng), belly=_belly(species, shape)
    )
    if "cheek" in species.extra:
        brush.polygon(smooth([(0.98, -0.06), (0.7, -0.02), (0.52, -0.16), (0.7, -0.26)]), fin)
    draw_fin(brush, shape.pectoral, mixed(fin, body, 0.25), (0.35, -0.05))
    _mouth_and_eye(brush, shape, body)
    return brush


def draw_fin(brush: Brush, outline: Sequence[Point], colour: Colour, root: Point) -> None:
    """A fin with rays that run from near its root to its edge."""
    curve = smooth(outline, 4)
    brush.polygon(curve, colour, darker(colour, 0.62))
    edge = curve[:: max(1, len(curve) // 7)]
    rays = [((root[0] * 0.45 + x * 0.55, root[1] * 0.45 + y * 0.55), (x, y)) for x, y in edge.tolist()]
    brush.lines(rays, darker(colour, 0.78), 0.018)


def draw_body(
    canvas: Image.Image,
    brush: Brush,
    outline: Points,
    colour: Colour,
    *,
    pattern: Sequence[Mark],
    belly: Mark | None = None,
) -> None:
    """Fill an outline with colour, pattern and shading, all clipped to it, and draw its rim."""
    placed = brush.pose.apply(outline)
    left, top = np.floor(placed.min(0)).astype(int) - 1
    right, bottom = np.ceil(placed.max(0)).astype(int) + 2
    size = (int(right - left), int(bottom - top))
    layer = Image.new("RGB", size, colour)
    moved = Pose(brush.pose.x - left, brush.pose.y - top, brush.pose.scale, brush.pose.angle, brush.pose.left)
    inner = Brush(moved, ImageDraw.Draw(layer))
    inner.marks(([belly] if belly else []) + list(pattern))
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).polygon(moved.apply(outline).ravel().tolist(), fill=255)
    layer = ImageChops.soft_light(layer, _shade(size, moved, outline))
    canvas.paste(layer, (int(left), int(top)), mask)
    rim = placed.ravel().tolist()
    width = max(2, round(brush.pose.scale / 40))
    brush.draw.line(rim + rim[:2], fill=darker(colour, 0.5), width=width)


def _shade(size: tuple[int, int], pose: Pose, outline: Points) -> Image.Image:
    """Light from above: a smooth ramp along the fish's own upward direction, as an RGB layer."""
    small = (max(2, size[0] // 8), max(2, size[1] // 8))
    xs = (np.arange(small[0]) + 0.5) * size[0] / small[0] - pose.x
    ys = pose.y - (np.arange(small[1]) + 0.5) * size[1] / small[1]
    across = (-xs if pose.left else xs)[None, :]
    up = (-math.sin(pose.angle) * across + math.cos(pose.angle) * ys[:, None]) / pose.scale
    height = max(float(np.abs(outline[:, 1]).max()), 0.05)
    relative = np.clip(up / height, -1, 1)
    light = 132 + 62 * np.exp(-(((relative - 0.42) / 0.4) ** 2)) - 62 * np.clip(-relative - 0.1, 0, 1)
    grey = Image.fromarray(np.clip(light, 0, 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    return Image.merge("RGB", (grey, grey, grey))


def _belly(species: Species, shape: Shape) -> Mark | None:
    if species.belly is None:
        return None
    xs = np.linspace(1.3, -1.0, 16)
    ends = [x for x, _ in shape.lower]
    low = np.interp(-xs, [-x for x in ends], [y for _, y in shape.lower])
    line = [(float(x), float(y)) for x, y in zip(xs, low * 0.3, strict=True)]
    return Mark([*line, (-1.1, -1.5), (1.5, -1.5)], species.belly)


def _mouth_and_eye(brush: Brush, shape: Shape, body: Colour) -> None:
    x, y, radius = shape.eye
    snout = shape.upper[0][0]
    brush.lines(
        [((snout, shape.upper[0][1] - 0.03), (snout - 0.16, shape.upper[0][1] - 0.1))],
        darker(body, 0.4),
        0.03,
    )
    gill = [(x - 0.2 - 0.06 * math.cos(t), y - 0.1 + 0.2 * math.sin(t)) for t in np.linspace(-1.2, 1.2, 7)]
    brush.lines(list(pairwise(gill)), darker(body, 0.66), 0.022)
    draw_eye(brush, x, y, radius)


def draw_eye(brush: Brush, x: float, y: float, radius: float) -> None:
    """Draw an eye with pupil and glint."""
    brush.disc(x, y, radius * 1.18, BLACK)
    brush.disc(x, y, radius, WHITE)
    brush.disc(x + radius * 0.15, y, radius * 0.62, BLACK)
    brush.disc(x + radius * 0.35, y + radius * 0.3, radius * 0.22, WHITE)


def _spines(brush: Brush, species: Species, rng: random.Random) -> None:
    """The lionfish's fans: long banded spines joined by a thin web."""
    web = mixed(species.fin, WHITE, 0.35)
    spread = rng.uniform(0.9, 1.1)
    fans = (
        [(0.42 - 0.1 * i, 0.28, 0.52 - 0.2 * i, (0.86 - 0.03 * abs(i - 3)) * spread) for i in range(9)],
        [(0.4 - 0.06 * i, -0.2, 0.56 - 0.24 * i, (-0.8 - 0.04 * (i % 2)) * spread) for i in range(7)],
    )
    for fan in fans:
        inner = [(x0 * 0.45 + x1 * 0.55, y0 * 0.45 + y1 * 0.55) for x0, y0, x1, y1 in fan]
        brush.polygon([*inner, *reversed([(x0, y0) for x0, y0, _, _ in fan])], web, darker(web, 0.7))
        for x0, y0, x1, y1 in fan:
            stops = [(x0 + (x1 - x0) * i / 6, y0 + (y1 - y0) * i / 6) for i in range(7)]
            parts = list(pairwise(stops))
            brush.lines(parts[::2], WHITE, 0.05)
            brush.lines(parts[1::2], species.fin, 0.05)
        brush.corners.append(brush.pose.apply([(x1, y1) for _, _, x1, y1 in fan]))
